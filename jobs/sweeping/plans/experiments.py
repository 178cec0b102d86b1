"""Named experiments: questions that the literature leaves open, asked at equal operations on one archive.

Sensors are found by what they measure, not by name: of those that measure reflectance the one with most tiles, or, where it is
paired with a radar, the two with most sites in common.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from jobs.recipes import load_recipe
from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.plan import Plan
from jobs.sweeping.settings import Setting
from models.stems.band_groups import SENTINEL2_GROUPS
from pipeline.archive import Archive
from pipeline.errors import InputError
from pipeline.views import presence

Arm = tuple[str, dict[str, Any]]
"""A recipe and what is changed in it."""
CAVEATS = ("Settings are each tiny recipe's own, not tuned for the budget; one archive; intervals are over seeds and places.",)


@dataclass(frozen=True)
class Common:
    """What all experiments can be told."""

    teraflops: float = 0.3
    """Of each run, 10^12 operations."""
    seeds: int = 3


@dataclass(frozen=True)
class TemporalOptions(Common):
    """Dates of a place as positives against crops of an image: SimCLR, MoCo, SeCo; give --changes for change detection."""


@dataclass(frozen=True)
class MaskingOptions(Common):
    """Hiding places (2-D) against hiding tokens of each group of bands (3-D), at equal ratio and at equal fully hidden ground."""

    mask_ratio: float = 0.75


@dataclass(frozen=True)
class CrossSensorOptions(Common):
    """RS-BYOL against contrastive and redundancy-reducing learning, optical and radar views of a place."""


@dataclass(frozen=True)
class MoeOptions(Common):
    """Experts against a dense model, at equal operations a token and at equal parameters."""


@dataclass(frozen=True)
class HypernetworkOptions(Common):
    """What a stem's weights are generated from: wavelengths as published, true ones, more facts; each sensor's own as control."""

    unseen: str = "rgb_aerial"
    """A sensor of the archive that is not trained on, but asked about."""


@dataclass(frozen=True)
class CompositionOptions(Common):
    """Which share of the data is paired, and which sensors it has."""


@dataclass(frozen=True)
class RemovalOptions(Common):
    """What is lost without each sensor of the archive."""


def temporal(options: TemporalOptions, archive: Archive) -> Plan:
    names = ("simclr_tiny", "temporal_simclr_tiny", "moco_tiny", "temporal_moco_tiny", "seco_tiny")
    question = "Are dates of a place better positives than crops of an image, for classification and for change?"
    versus = (("temporal_moco_tiny", "moco_tiny"), ("seco_tiny", "moco_tiny"))
    return _plan("temporal", question, {name: (name, {}) for name in names}, options, "simclr_tiny", versus=versus)


def masking(options: MaskingOptions, archive: Archive) -> Plan:
    optical, ratio = _optical(archive), options.mask_ratio
    groups = len(SENTINEL2_GROUPS)
    deep = round(ratio ** (1 / groups), 4)
    common = {"train.sensor_sets": [[optical]], "normalise_patches": False}
    arms: dict[str, Arm] = {}
    for title, is_consistent, share in (
        (f"2-D, {ratio:g}", True, ratio),
        (f"3-D, {ratio:g}", False, ratio),
        (f"3-D, {deep:g}", False, deep),
    ):
        arms[title] = ("satmae_group_tiny", common | {"is_consistent": is_consistent, "mask_ratio": share})
    exams = {
        "places hidden": {"is_consistent": True, "mask_ratio": ratio},
        "tokens hidden": {"is_consistent": False, "mask_ratio": ratio},
    }
    question = (
        f"Is it better to hide whole places or tokens of {groups} groups of bands? At ratio {deep:g} tokens hide as much ground "
        f"in all groups as places at {ratio:g}."
    )
    return _plan("masking", question, arms, options, next(iter(arms)), exams)


def cross_sensor(options: CrossSensorOptions, archive: Archive) -> Plan:
    pairs = {"train.sensor_sets": [sorted(_pair(archive))]}
    views = {"objective.views": "sensors", "train.view": {"kind": "CrossSensor"}, "train.stream.crops": None}
    arms: dict[str, Arm] = {"simclr of sensors": ("simclr_tiny", pairs | views), "moco of sensors": ("moco_tiny", pairs | views)}
    for name in ("rs_byol_tiny", "rs_byol_three_tiny", "byol_sensors_tiny", "vicreg_sensors_tiny", "barlow_twins_sensors_tiny"):
        arms[name] = (name, pairs)
    question = "Do optical and radar views teach each other better by prediction (RS-BYOL), contrast or redundancy reduction?"
    stems = tuple(("byol_sensors_tiny", name) for name in ("rs_byol_tiny", "rs_byol_three_tiny"))
    return _plan("cross_sensor", question, arms, options, "simclr of sensors", versus=stems)


def moe(options: MoeOptions, archive: Archive) -> Plan:
    backbone = load_recipe("pretrain", "loom_tiny").backbone
    mixtures, experts = backbone.depth // 2, backbone.moe.num_experts
    ratio = backbone.mlp_ratio * (backbone.depth - mixtures + experts * mixtures) / backbone.depth
    arms: dict[str, Arm] = {
        "dense, equal operations": ("loom_tiny", {"backbone.moe": None}),
        "dense, equal parameters": ("loom_tiny", {"backbone.moe": None, "backbone.mlp_ratio": ratio}),
        f"{experts} experts": ("loom_tiny", {}),
    }
    exams = {"all sensors": {}, "a sensor hidden": {"cross_sensor_probability": 1.0}}
    question = "Are experts worth it, against a dense model of as many operations a token and one of as many parameters?"
    return _plan("moe", question, arms, options, "dense, equal operations", exams)


def hypernetwork(options: HypernetworkOptions, archive: Archive) -> Plan:
    if options.unseen not in archive.sensors:
        raise InputError(f"unseen is '{options.unseen}', which '{archive.url}' lacks (has {', '.join(sorted(archive.sensors))})")
    optical = _optical(archive)
    if options.unseen == optical:
        raise InputError(f"unseen is '{optical}', which all others are paired with; leave out another")
    seen = [[optical, name] for name in sorted(archive.sensors) if name not in (optical, options.unseen)]
    common = {"train.sensor_sets": seen}
    facts = ["wavelength"]
    arms: dict[str, Arm] = {
        "wavelength as published": ("loom_tiny", common | {"stems": "dofa"}),
        "true wavelength": ("loom_tiny", common | {"facts": [*facts]}),
    }
    for fact, title in (("polarisation", "+ polarisation"), ("sensing", "+ active or passive")):
        facts.append(fact)
        arms[title] = ("loom_tiny", common | {"facts": [*facts]})
    arms |= {"all facts": ("loom_tiny", common), "own stems": ("loom_tiny", common | {"stems": "sensor"})}
    exams: dict[str, dict[str, Any]] = {
        "a sensor hidden": {"cross_sensor_probability": 1.0},
        "unseen sensor": {"train.sensor_sets": [[optical, options.unseen]]},
        "unseen sensor hidden": {"train.sensor_sets": [[optical, options.unseen]], "cross_sensor_probability": 1.0},
    }
    question = (
        f"What must a hypernetwork be told of a band, to rebuild one sensor from another and to read {options.unseen} unseen?"
    )
    return _plan("hypernetwork", question, arms, options, "true wavelength", exams, (("all facts", "own stems"),))


def composition(options: CompositionOptions, archive: Archive) -> Plan:
    optical, radar = _pair(archive)
    pair, singles = sorted((optical, radar)), [[optical], [radar]]
    single = {"train.view": {"kind": "Single"}}
    arms: dict[str, Arm] = {
        "all paired": ("msgfm_tiny", {"train.sensor_sets": [pair]}),
        "pairs and singles": ("msgfm_tiny", single | {"train.sensor_sets": [pair, *singles]}),
        "none paired": ("msgfm_tiny", single | {"train.sensor_sets": singles}),
        "optical alone": ("msgfm_tiny", single | {"train.sensor_sets": [[optical]]}),
        "radar alone": ("msgfm_tiny", single | {"train.sensor_sets": [[radar]]}),
        "all sensors": ("msgfm_tiny", {}),
    }
    question = "How much of the data must be paired, and which sensors are worth having?"
    return _plan("composition", question, arms, options, "all paired")


def removal(options: RemovalOptions, archive: Archive) -> Plan:
    names = sorted(archive.sensors)
    if len(names) < 3:
        raise InputError(f"'{archive.url}' has {len(names)} sensors, expected three or more to leave one out")
    arms: dict[str, Arm] = {"all sensors": ("msgfm_tiny", {})}
    for name in names:
        left = [other for other in names if other != name]
        hub = next((other for other in left if _is_reflectance(archive, other)), left[0])
        arms[f"without {name}"] = ("msgfm_tiny", {"train.sensor_sets": [[hub, other] for other in left if other != hub]})
    return _plan("removal", "What is lost without each sensor?", arms, options, "all sensors")


def _plan(
    name: str,
    question: str,
    arms: dict[str, Arm],
    options: Common,
    reference: str,
    exams: dict[str, dict[str, Any]] | None = None,
    versus: tuple[tuple[str, str], ...] = (),
) -> Plan:
    asked: tuple[tuple[str, tuple[Setting, ...]], ...] = tuple((of, tuple(s.items())) for of, s in (exams or {}).items())
    budget = Budget(flops=options.teraflops * 1e12)
    cells = [
        Cell(arm, recipe, tuple(settings.items()), seed, budget, exams=asked)
        for seed in range(options.seeds)
        for arm, (recipe, settings) in arms.items()
    ]
    return Plan(name, question, tuple(cells), "arms", reference, versus, CAVEATS)


def _is_reflectance(archive: Archive, name: str) -> bool:
    return archive.sensors[name].quantity.endswith("reflectance")


def _optical(archive: Archive) -> str:
    """Return the sensor that measures reflectance and has most tiles."""
    found = _those(archive, lambda name: _is_reflectance(archive, name), "measures reflectance")
    tiles = archive.catalog()["sensor"].value_counts()
    return max(sorted(found), key=lambda name: tiles.get(name, 0))


def _pair(archive: Archive) -> tuple[str, str]:
    """Return the sensor that measures reflectance and the radar that have most sites in common."""
    optical = _those(archive, lambda name: _is_reflectance(archive, name), "measures reflectance")
    radar = _those(archive, lambda name: archive.sensors[name].quantity in ("sigma0", "gamma0"), "is a radar")
    sites: Counter[tuple[str, str]] = Counter()
    for (names, name), count in presence(archive.catalog()).items():
        sites.update({pair: count for pair in product(optical, radar) if not name and {*pair} <= {*names}})
    if not sites:
        raise InputError(
            f"no site of '{archive.url}' has one of {', '.join(optical)} and one of {', '.join(radar)}; use an archive of pairs"
        )
    return max(sorted(sites), key=lambda pair: sites[pair])


def _those(archive: Archive, is_one: Callable[[str], bool], what: str) -> list[str]:
    found = sorted(filter(is_one, archive.sensors))
    if not found:
        raise InputError(f"no sensor of '{archive.url}' {what} (has {', '.join(sorted(archive.sensors))}); use another archive")
    return found


PLANS = {
    "temporal": (TemporalOptions, temporal),
    "masking": (MaskingOptions, masking),
    "cross_sensor": (CrossSensorOptions, cross_sensor),
    "moe": (MoeOptions, moe),
    "hypernetwork": (HypernetworkOptions, hypernetwork),
    "composition": (CompositionOptions, composition),
    "removal": (RemovalOptions, removal),
}
