"""Every objective at one budget of operations, on one archive: the comparison that published numbers do not allow.

The set is what `jobs/recipes` has: every pretraining recipe that ends in '_tiny'. Each runs as it is; one whose backbone is
not the common transformer, but whose method takes it, runs with that as well.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from jobs.recipes import load_recipe, recipes
from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.plan import Plan
from jobs.sweeping.settings import Setting
from models.config import to_dict
from models.errors import InputError as ModelInputError
from models.sensor import SensorSpec
from models.vit import VitConfig
from pipeline.archive import Archive
from pipeline.errors import InputError

TINY = "_tiny"
COMMON = VitConfig(embed_dim=48, depth=2, num_heads=2)
"""What most tiny recipes have."""
ON_COMMON = " on vit"
TEACHER = "simmim_tiny"
"""Whose model a recipe learns from that needs one."""
REFERENCE = "mae_tiny"
ANY_SENSOR = SensorSpec("rgb", "passive", "digital_number", "1", 10.0, ("r", "g", "b"), (None,) * 3, (0.4,) * 3, (0.2,) * 3)
CAVEATS = (
    "Operations are those of training; a teacher's own are not counted against what it teaches.",
    "Settings are each tiny recipe's own and were not tuned for this budget: an objective that wants more steps or a larger "
    "batch is worse off here than published.",
    "A linear probe of a few hundred labelled tiles on one archive; intervals are over seeds and places.",
)


@dataclass(frozen=True)
class GenealogyOptions:
    """All objectives at one number of operations, several seeds, probes, health."""

    teraflops: float = 0.1
    """Of each run, 10^12 operations."""
    seeds: int = 3
    recipes: tuple[str, ...] = ()
    """Pretrain recipes; none: all that end in _tiny."""
    on_vit: bool = True
    """Also run recipes of other backbones on the common transformer, where their method takes it."""


def genealogy(options: GenealogyOptions, archive: Archive) -> Plan:
    names = list(options.recipes) or sorted(name for name in recipes("pretrain") if name.endswith(TINY))
    arms: dict[str, tuple[str, tuple[Setting, ...]]] = {name: (name, ()) for name in names}
    if options.on_vit:
        made = [load_recipe("pretrain", name) for name in names]
        for name, recipe in zip(names, made):
            if (other := on_common(recipe)) is not None and other not in made:
                arms[name + ON_COMMON] = (name, (("backbone", to_dict(other.backbone)),))
    has_teacher = any(hasattr(load_recipe("pretrain", name), "located") and not _runs_alone(name) for name in names)
    if has_teacher and TEACHER not in arms:
        raise InputError(f"a recipe needs a teacher, which {TEACHER} is to be, and that is not among {', '.join(names)}; add it")
    cells = tuple(
        Cell(arm, name, settings, seed, Budget(flops=options.teraflops * 1e12), "" if _runs_alone(name) else TEACHER)
        for seed in range(options.seeds)  # so that a sweep that is stopped has asked every objective
        for arm, (name, settings) in arms.items()
    )
    question = f"Which objective makes the best encoder with {options.teraflops:g} TFLOP on this archive?"
    return Plan("genealogy", question, cells, "arms", REFERENCE if REFERENCE in arms else "", caveats=CAVEATS)


def on_common(recipe: Any) -> Any:
    """Return the recipe on the common transformer, with its experts; None where it has that already or its method refuses it."""
    if isinstance(recipe.backbone, VitConfig):
        return None
    other = replace(recipe, backbone=replace(COMMON, moe=getattr(recipe.backbone, "moe", None)))
    if getattr(recipe, "teacher", None) == "":
        return None  # a teacher's stages are matched with its own
    try:
        with torch.device("meta"):
            other.build((ANY_SENSOR,), torch.Generator())
    except ModelInputError:
        return None
    return other


def _runs_alone(name: str) -> bool:
    """Return whether a recipe needs no teacher."""
    recipe = load_recipe("pretrain", name)
    return getattr(recipe, "teacher", None) != ""


PLANS = {"genealogy": (GenealogyOptions, genealogy)}
