"""How large each cell's run is: parameters, operations a sample, steps. Counted from the recipe, before anything is spent.

Operations are those of `models.cost`, not 6 N D. A run's warm-up is never more than a tenth of its steps, and its rate falls
over all of them: a schedule that is cut short says nothing of one that is not (Hoffmann et al. 2022).
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

import torch

from cluster.optimiser import OptimiserConfig
from cluster.workload import costs, shape_of_archive
from jobs.sweeping.cell import Cell
from jobs.sweeping.settings import changed
from models.cost import UndrawnWeights
from models.moe import MixtureOfExperts
from pipeline.archive import open_archive
from pipeline.errors import InputError

WARMUP_SHARE = 0.1
CHECKPOINTS = 4
"""Of a run, so that a killed one loses a quarter."""
LOOKS = 4
"""At a run's health, at most, and in its last step: one of a few steps, looked at in each, would be taken for collapsed."""


@dataclass(frozen=True)
class Sizes:
    """What a run of a cell is.

    parameters           trained, all
    backbone_parameters  of the backbone alone, without stems, decoders and heads: N of the laws (Kaplan et al. 2020)
    active_parameters    of the backbone, those that a token meets
    flops_per_sample     forward and backward
    batch, steps         samples a step over all lanes, steps
    passes               how often each sample of the train split is seen, in the mean
    """

    backbone: str
    width: int
    depth: int
    parameters: int
    backbone_parameters: int
    active_parameters: int
    flops_per_sample: float
    batch: int
    steps: int
    passes: float
    learning_rate: float
    warmup_steps: int

    @property
    def samples(self) -> int:
        return self.batch * self.steps

    @property
    def flops(self) -> float:
        return self.samples * self.flops_per_sample


def sizes_of(cell: Cell, archive_url: str, teacher: Cell | None = None, seconds_per_step: float = 0.0) -> Sizes:
    """Return the sizes of a cell's run. `seconds_per_step` is needed for budgets of hours alone.

    A `teacher` need not have been trained: it is built for its shape.
    """
    recipe = cell.recipe_of()
    train, budget = recipe.train, cell.budget
    counted = _counted(_Shape(recipe, teacher.recipe_of() if teacher else None), archive_url)
    flops, batch = counted.flops_per_sample, train.lanes * train.batch_size
    wanted = budget.samples or (budget.flops / flops if budget.flops else 3600 * budget.hours / seconds_per_step * batch)
    steps = round(wanted / batch)
    if steps < 2:
        raise InputError(
            f"{cell}: the budget is {wanted:.3g} samples of {flops / 1e9:.3g} GFLOP each, a step takes {batch}; give it more"
        )
    return Sizes(
        backbone=recipe.backbone.kind,
        width=recipe.backbone.embed_dim,
        depth=counted.depth,
        parameters=counted.parameters,
        backbone_parameters=counted.backbone_parameters,
        active_parameters=counted.active_parameters,
        flops_per_sample=flops,
        batch=batch,
        steps=steps,
        passes=round(batch * steps / counted.num_samples, 2),
        learning_rate=train.optimiser.learning_rate,
        warmup_steps=max(1, round(min(train.optimiser.warmup_steps / train.num_steps, WARMUP_SHARE) * steps)),
    )


@dataclass(frozen=True)
class _Counted:
    """What does not hang on rates, seeds and lengths; num_samples of the train split."""

    parameters: int
    backbone_parameters: int
    active_parameters: int
    depth: int
    flops_per_sample: float
    num_samples: float


class _Shape:
    """A recipe and the one that teaches it, equal to others that cost as much a sample."""

    def __init__(self, recipe: Any, teacher: Any) -> None:
        self.recipe, self.teacher = recipe, teacher
        train = dataclasses.replace(recipe.train, optimiser=OptimiserConfig(bf16=recipe.train.optimiser.bf16), num_steps=1, seed=0)
        self._key = repr((dataclasses.replace(recipe, train=train), teacher))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self._key == other._key


@lru_cache(maxsize=256)
def _counted(of: _Shape, archive_url: str) -> _Counted:
    recipe, train = of.recipe, of.recipe.train
    shape = shape_of_archive(archive_url, train)
    with UndrawnWeights(), tempfile.TemporaryDirectory() as folder:
        if of.teacher is not None:
            of.teacher.build(shape.specs, torch.Generator()).encoder.save(folder)
            recipe = changed(recipe, [("teacher", folder)])
        objective = recipe.build(shape.specs, torch.Generator())
        of_sets = costs(objective, shape, train, is_fused=False)
    backbone = objective.encoder.backbone
    own = sum(p.numel() for p in backbone.parameters())
    idle = sum(m.num_idle_parameters for m in backbone.modules() if isinstance(m, MixtureOfExperts))
    return _Counted(
        parameters=sum(p.numel() for p in objective.parameters() if p.requires_grad),
        backbone_parameters=own,
        active_parameters=own - idle,
        depth=len(getattr(backbone, "blocks", ())),
        flops_per_sample=sum(part.share * fmean(cost.flops for cost in of_sets[part.sensors]) for part in shape.sets),
        num_samples=sum(part.shard_samples for part in shape.sets) * len(open_archive(archive_url).published()),
    )


def sized(recipe: Any, sizes: Sizes, workers: str) -> Any:
    """Return the recipe as a cell of these sizes runs it."""
    every = max(1, sizes.steps // CHECKPOINTS)
    train = {
        "num_steps": sizes.steps,
        "workers": workers,
        "optimiser": {"warmup_steps": sizes.warmup_steps},
        "checkpoint_every": every,
        "keep_every": 0,
        "keep_last": 1,
        "health_every": max(recipe.train.health_every, sizes.steps // LOOKS),
    }
    return changed(recipe, [("train", train)])


def as_facts(sizes: Sizes) -> dict[str, Any]:
    return dataclasses.asdict(sizes) | {"samples": sizes.samples, "flops": sizes.flops}
