"""One run of a sweep: a recipe, what is changed in it, a seed, and what it may spend."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from jobs.recipes import load_recipe
from jobs.sweeping.settings import Setting, changed
from pipeline.errors import InputError

KEY_DIGITS = 16


@dataclass(frozen=True)
class Budget:
    """What a run may spend, in one of three ways.

    flops    operations of the model in training, counted as `models.flops` counts them
    samples  seen in training, each as often as it comes
    hours    on the CPUs and GPUs of a cell, at the speed that the recipe's first steps have there
    """

    flops: float = 0.0
    samples: int = 0
    hours: float = 0.0

    def __post_init__(self) -> None:
        given = [name for name, value in asdict(self).items() if value]
        if len(given) != 1 or min(asdict(self).values()) < 0:
            raise InputError(f"a budget has {', '.join(given) or 'nothing'}, expected one of flops, samples, hours above 0")

    def __str__(self) -> str:
        if self.flops:
            return f"{self.flops / 1e12:g} TFLOP"
        return f"{self.samples} samples" if self.samples else f"{self.hours:g} h"


@dataclass(frozen=True)
class Cell:
    """arm is what tables call it; `teacher` another arm of the same plan and seed, whose model its recipe learns from.

    exams name other settings under which the held-out loss is asked, so that arms that hide different things answer the same.
    """

    arm: str
    recipe: str
    settings: tuple[Setting, ...]
    seed: int
    budget: Budget
    teacher: str = ""
    exams: tuple[tuple[str, tuple[Setting, ...]], ...] = ()

    @cached_property
    def key(self) -> str:
        """Return the name of its folder: a digest of all that its numbers depend on. What tables call it is not among that."""
        content = asdict(self)
        del content["arm"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]

    def __str__(self) -> str:
        return f"{self.arm}, {self.budget}, seed {self.seed}"

    def recipe_of(self, settings: tuple[Setting, ...] = ()) -> Any:
        """Return its recipe as it is run, in one process; raise InputError for an unknown one or a wrong setting."""
        alone = ("train.workers", "0")  # how many a recipe asks for says nothing here: a sweep has workers of its own
        return changed(load_recipe("pretrain", self.recipe), (alone, *self.settings, *settings, ("train.seed", self.seed)))
