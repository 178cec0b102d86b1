"""Watch a run's health, and end it, saying why, once it has collapsed instead of finishing it for nothing.

Decides when to look and which values are those of a collapsed run. What is measured is `models/health.py`'s.

Measured on the demo planet, tiny recipes, 32 tiles a look, steps 10 to 60 (collapsed ones to 400), the lowest of four sensors;
a std of s is a mean cosine between tiles of about 1 - s^2:

                                     embeddings: std, rank     std of what the loss compares, as a share of the embeddings'
    MAE                              0.045     2.7             -  (0.045: heights alone, where positions are most of a token)
    VICReg, BYOL, DINO, SimCLR       0.37      3.5             0.68
    BYOL, no predictor, momentum 0   0.39      2.3             0.27 at step 20, 0.04 to 0.14 from step 40 on
    VICReg without variance term     0.36      3.0             0.92: its head shrinks, but tiles keep their directions in it

A head can collapse while the encoder stays what it was before training, so both are looked at.
"""

from typing import Any

import torch
import torch.distributed as dist

from cluster.engine import Engine
from models.batch import Batch
from models.distributed import world_size
from models.health import examine
from pipeline.errors import RunFailed

MIN_STD, MIN_RANK, MIN_HEAD_SHARE = 0.01, 1.2, 0.15
MIN_TILES = 8
"""Below this many tiles a look says little: the effective rank of B tiles is at most B - 1."""
NUM_LOOKS = 3
"""Looks in a row, after the warm-up, that must find every sensor of the step collapsed."""


class Watch:
    """Looks at the objective of `engine` every `every` steps (0: never) and in the last one; every rank has one."""

    def __init__(self, engine: Engine, every: int, num_steps: int, warmup_steps: int):
        self._engine, self._every, self._num_steps, self._warmup_steps = engine, every, num_steps, warmup_steps
        self._in_a_row = 0

    def is_due(self, step: int) -> bool:
        return self._every > 0 and ((step + 1) % self._every == 0 or step + 1 == self._num_steps)

    def look(self, step: int, batch: Batch, generator: torch.Generator) -> dict[str, Any]:
        """Return what `examine` finds after `step`, and remember it for `diagnose`; every rank must call both."""
        found = examine(self._engine.objective, batch.to(self._engine.device), generator)
        is_bad = step >= self._warmup_steps and all(is_collapsed(found, s) for s in batch.tiles if f"num_tiles/{s}" in found)
        self._in_a_row = self._in_a_row + 1 if is_bad else 0
        return found

    def diagnose(self, step: int, found: dict[str, Any]) -> None:
        """Raise RunFailed if the look after `step` was the last of too many bad ones; on every rank or on none."""
        if not self.is_due(step):
            return
        # Ranks compute the same from the same, but need not on different processors: the first one decides.
        verdict = torch.tensor(self._in_a_row >= NUM_LOOKS, dtype=torch.int32, device=self._engine.device)
        if world_size() > 1:
            dist.broadcast(verdict, 0)
        if verdict:
            raise RunFailed(
                f"step {step + 1}: the run has collapsed, tiles are hardly told apart: {_measured(found)}, as low in {NUM_LOOKS} "
                f"looks in a row; healthy runs have an embedding std above {MIN_STD:g}, a rank above {MIN_RANK:g} and a head std "
                f"above {MIN_HEAD_SHARE:g} of the embedding's; lower the learning rate, lengthen the warm-up or strengthen what "
                f"keeps embeddings apart, and begin in a new folder"
            )


def is_collapsed(found: dict[str, Any], sensor: str) -> bool:
    """Return whether a sensor's tiles are told apart so little that training cannot have been worth it."""
    if found[f"num_tiles/{sensor}"] < MIN_TILES:
        return False
    std, rank = found[f"feature_std/{sensor}"], found[f"effective_rank/{sensor}"]
    return std < MIN_STD or rank < MIN_RANK or found.get(f"projection_std/{sensor}", std) < MIN_HEAD_SHARE * std


def _measured(found: dict[str, Any]) -> str:
    """Return in words what stands in `found` of each sensor."""
    words = {"feature_std": "embedding std", "effective_rank": "rank", "projection_std": "head std"}
    sensors = [name.partition("/")[2] for name in found if name.startswith("feature_std/")]
    parts = [[f"{words[k]} {found[f'{k}/{s}']:.2g}" for k in words if f"{k}/{s}" in found] for s in sensors]
    return "; ".join(f"{sensor} {', '.join(part)}" for sensor, part in zip(sensors, parts))
