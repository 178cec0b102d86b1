"""What is compared: trained encoders, and the baselines that stand in every table.

A contender says which roles it plays; a protocol, which one it takes. `pooled`: a vector for each tile; `maps`: an encoder's
maps, its weights as they are; `frozen`: the same of images that are made for each step; `tuned`: an encoder that is trained with
its head; `pixels`: no encoder, but the pixels themselves.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.embedding import FeatureMaker, ImageStatistics, ModelFeatures, RandomFeatures
from cluster.external import ExternalFeatures
from cluster.run import Run
from models.encoder import Encoder, EncoderConfig
from models.sensor import SensorSpec
from pipeline import storage
from pipeline.archive import Archive

RANDOM = "random initialisation"
STATISTICS = "image statistics"
SCRATCH = "supervised from scratch"

Role = Literal["pooled", "maps", "frozen", "tuned", "pixels"]


@dataclass(frozen=True)
class Contender:
    """`makers` turn tiles into features: one for all seeds, or one for each."""

    title: str
    roles: frozenset[Role]
    makers: tuple[FeatureMaker, ...]
    digest: str
    """Of the weights, or of what they are drawn from."""
    specs: tuple[SensorSpec, ...] = ()
    """What its encoder knows of its sensors."""
    parameters: int | None = None
    """Of a trained encoder."""
    num_dates: int = 1
    """So many dates of a place, at most, its encoder has learned to look at together; 1: each by itself."""

    def maker(self, seed: int) -> FeatureMaker:
        return self.makers[seed % len(self.makers)]

    def takes(self, sensors: tuple[str, ...]) -> bool:
        """Return whether these sensors can be asked about: of pixels all, of an encoder those that it knows."""
        return "pixels" in self.roles or set(sensors) <= {spec.name for spec in self.specs}

    def encoder(self, seed: int) -> Encoder:
        """Return the encoder in its own copy, to be trained or not."""
        maker = self.maker(seed)
        assert not isinstance(maker, ImageStatistics), f"{self.title} has no encoder"
        return maker.load()  # type: ignore[attr-defined]


def contenders(models: list[Run], seeds: int, external: Sequence[str] = ()) -> list[Contender]:
    """Return the models, each different encoder as it was before training, the baselines without training, and those of others.

    `external` are paths of descriptions (`cluster.external`).
    """
    trained: list[Contender] = []
    untrained: dict[tuple[EncoderConfig, int], str] = {}
    for title, run in zip(titles(models), models):
        maker = ModelFeatures(run.path("model"))
        encoder = maker.load()
        digest = hashlib.sha256(storage.read_bytes(run.path("model", "model.safetensors"))).hexdigest()
        roles: frozenset[Role] = frozenset(("pooled", "maps", "frozen", "tuned"))
        is_apart = encoder.config.frames == "apart"
        dates = 1 if is_apart else num_dates(storage.read_json(run.path("config.json"))["config"]["train"])
        trained.append(Contender(title, roles, (maker,), digest, encoder.config.sensors, encoder.num_parameters, dates))
        untrained.setdefault((encoder.config, dates), random_title(title) if untrained else RANDOM)
    result = [*trained, Contender(STATISTICS, frozenset(("pooled", "pixels")), (ImageStatistics(),), "")]
    for number, ((config, dates), title) in enumerate(untrained.items()):
        digest = hashlib.sha256(repr(config).encode()).hexdigest()
        makers = tuple(RandomFeatures(config, seed) for seed in range(seeds))
        result.append(Contender(title, frozenset(("pooled", "maps", "frozen")), makers, digest, config.sensors, num_dates=dates))
        if not number:
            result.append(Contender(SCRATCH, frozenset(("tuned",)), makers, digest, config.sensors))
    return result + [_external(path) for path in external]


def num_dates(train: Mapping[str, Any]) -> int:
    """Return how many dates together, at most, training as recorded shows an encoder that can: those of a stack (`DateStack`)."""
    return int(train["view"].get("num_dates", 1))


def _external(path: str) -> Contender:
    maker = ExternalFeatures(path)
    encoder = maker.load()
    specs = tuple(encoder.config.sensors)
    return Contender(encoder.config.title, frozenset(("pooled",)), (maker,), maker.digest(), specs, encoder.num_parameters)


def random_title(title: str) -> str:
    """Return what the encoder of a further model is called as it was before training; that of the first is RANDOM."""
    return f"{RANDOM} ({title})"


def titles(models: list[Run]) -> list[str]:
    """Return a name for each model: pretrained or student; a further one of a kind with its recipe, and numbered if need be."""
    found: list[str] = []
    for model in models:
        config = storage.read_json(model.path("config.json"))
        kind = {"pretrain": "pretrained", "distill": "student"}.get(config["job"], config["job"])
        title = kind if kind not in found else f"{kind} {config['inputs']['recipe']}"
        count = sum(known.split(" #")[0] == title for known in found)
        found.append(f"{title} #{count + 1}" if count else title)
    return found


def normalisation_digest(contender: Contender, archive: Archive, sensors: tuple[str, ...]) -> str:
    """Return the SHA-256 of the bands, units and statistics that a contender's pixels of these sensors are normalised with."""
    if "pixels" in contender.roles:
        content = repr([archive.read_statistics()["sensors"].get(name) for name in sensors])
    else:
        content = repr([spec for name in sensors for spec in contender.specs if spec.name == name])
    return hashlib.sha256(content.encode()).hexdigest()
