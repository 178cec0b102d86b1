"""Watch a run's health, and end it, saying why, once it has collapsed instead of finishing it for nothing.

Decides when to look and which values are those of a collapsed encoder. What is measured is `models/health.py`'s.
"""

from typing import Any

import torch
import torch.distributed as dist

from cluster.engine import Engine
from models.batch import Batch
from models.distributed import world_size
from models.health import examine
from pipeline.errors import RunFailed

MIN_STD, MIN_RANK = 0.02, 1.2
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
        is_bad = step >= self._warmup_steps and all(is_collapsed(*_of_sensor(found, sensor)) for sensor in batch.tiles)
        self._in_a_row = self._in_a_row + 1 if is_bad else 0
        return found

    def diagnose(self, step: int, found: dict[str, Any]) -> None:
        """Raise RunFailed if a look after `step` has found a sensor collapsed often enough; on every rank or on none."""
        if not self.is_due(step):
            return
        # Ranks compute the same from the same, but need not on different processors: the first one decides.
        verdict = torch.tensor(self._in_a_row >= NUM_LOOKS, dtype=torch.int32, device=self._engine.device)
        if world_size() > 1:
            dist.broadcast(verdict, 0)
        if verdict:
            sensors = [name.partition("/")[2] for name in found if name.startswith("feature_std/")]
            measured = "; ".join("{}: std {:.2g}, rank {:.2g}".format(s, *_of_sensor(found, s)[:2]) for s in sensors)
            raise RunFailed(
                f"step {step + 1}: the encoder has collapsed (feature std relative to an even spread's and effective rank are "
                f"{measured}, and were as low in {NUM_LOOKS} looks in a row), healthy runs have more than {MIN_STD:g} and "
                f"{MIN_RANK:g}; lower the learning rate, lengthen the warm-up or strengthen what keeps embeddings apart, and "
                f"begin in a new folder"
            )


def is_collapsed(feature_std: float, effective_rank: float, num_tiles: int) -> bool:
    """Return whether tiles are told apart so little that training cannot have been worth it."""
    return num_tiles >= MIN_TILES and (feature_std < MIN_STD or effective_rank < MIN_RANK)


def _of_sensor(found: dict[str, Any], sensor: str) -> tuple[float, float, int]:
    return found[f"feature_std/{sensor}"], found[f"effective_rank/{sensor}"], found[f"num_tiles/{sensor}"]
