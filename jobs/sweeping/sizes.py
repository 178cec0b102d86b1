"""How large each cell's run is: parameters, operations a sample, steps. Counted from the recipe, before anything is spent.

Operations are those of `models.cost`, not 6 N D. A run's warm-up is never more than a tenth of its steps, and its rate falls
over all of them: a schedule that is cut short says nothing of one that is not (Hoffmann et al. 2022).
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

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
"""At a run's health."""


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
    train, config = recipe.train, recipe.backbone
    shape = shape_of_archive(archive_url, train)
    with UndrawnWeights(), tempfile.TemporaryDirectory() as folder:
        if teacher is not None:
            taught = teacher.recipe_of().build(shape.specs, torch.Generator().manual_seed(0))
            taught.encoder.save(folder)
            recipe = changed(recipe, [("teacher", folder)])
        objective = recipe.build(shape.specs, torch.Generator().manual_seed(0))
        backbone = objective.encoder.backbone
        trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        own = sum(p.numel() for p in backbone.parameters())
        idle = sum(m.num_idle_parameters for m in backbone.modules() if isinstance(m, MixtureOfExperts))
        of_sets = costs(objective, shape, train, is_fused=False)
    flops = sum(part.share * fmean(cost.flops for cost in of_sets[part.sensors]) for part in shape.sets)
    batch, budget = train.lanes * train.batch_size, cell.budget
    wanted = budget.samples or (budget.flops / flops if budget.flops else 3600 * budget.hours / seconds_per_step * batch)
    steps = round(wanted / batch)
    if steps < 2:
        raise InputError(
            f"{cell}: the budget is {wanted:.3g} samples of {flops / 1e9:.3g} GFLOP each, a step takes {batch}; give it more"
        )
    total = sum(part.shard_samples for part in shape.sets) * len(open_archive(archive_url).published())
    return Sizes(
        backbone=config.kind,
        width=config.embed_dim,
        depth=len(getattr(backbone, "blocks", ())) or getattr(config, "depth", 0),
        parameters=trained,
        backbone_parameters=own,
        active_parameters=own - idle,
        flops_per_sample=flops,
        batch=batch,
        steps=steps,
        passes=round(batch * steps / total, 2),
        learning_rate=train.optimiser.learning_rate,
        warmup_steps=max(1, min(train.optimiser.warmup_steps, round(WARMUP_SHARE * steps))),
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
        "health_every": max(1, sizes.steps // LOOKS),
    }
    return changed(recipe, [("train", train)])


def as_facts(sizes: Sizes) -> dict[str, Any]:
    return dataclasses.asdict(sizes) | {"samples": sizes.samples, "flops": sizes.flops}
