"""Checkpoints that stay in RUN/kept when the run's own, of which Ray Train holds the last few, have gone."""

import math
import shutil
from statistics import fmean
from typing import Any

import torch.distributed as dist

from cluster.run import Run
from models.distributed import world_size
from pipeline import storage

FOLDER, INDEX = "kept", "kept.json"


class Kept:
    """Keeps a checkpoint every `every` steps (0: none) and, if `keeps_best`, the one with the lowest mean loss before it.

    The loss is that of training, over the steps since the last checkpoint. Every rank has one and sees the same losses.
    """

    def __init__(self, run: Run, every: int, keeps_best: bool):
        self._run, self._every, self._keeps_best = run, every, keeps_best
        found = storage.read_json(run.path(INDEX)) if storage.exists(run.path(INDEX)) else {"checkpoints": []}
        self._listed: list[dict[str, Any]] = found["checkpoints"]
        self._losses: list[float] = []
        self._has_changed = False

    def see(self, loss: float) -> None:
        """Remember a step's loss."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def add(self, folder: str, next_step: int) -> None:
        """Copy this rank's files in `folder`, the checkpoint of `next_step`, if it is one to be kept."""
        loss = fmean(self._losses) if self._losses else math.inf
        self._losses = []
        best = min((entry["loss"] for entry in self._listed if entry["is_best"]), default=math.inf)
        is_best = self._keeps_best and loss < best
        is_due = bool(self._every) and next_step % self._every == 0
        self._has_changed = is_best or is_due
        if not self._has_changed:
            return
        fs, path = storage.filesystem(self._run.path(FOLDER, f"{next_step:08d}"))
        if storage.is_local(self._run.url):
            shutil.copytree(folder, path, dirs_exist_ok=True)
        else:
            with storage.one_line("write", path):
                fs.put(folder.rstrip("/") + "/", path, recursive=True)
        others = [entry | {"is_best": entry["is_best"] and not is_best} for entry in self._listed if entry["step"] != next_step]
        entry = {"step": next_step, "loss": loss, "is_due": is_due, "is_best": is_best}
        self._listed = [one for one in (*others, entry) if one["is_due"] or one["is_best"]]

    def tidy(self, rank: int) -> None:
        """List what is kept once all ranks have copied their share, and remove what was the best before."""
        if not self._has_changed:
            return
        self._has_changed = False
        if world_size() > 1:
            dist.barrier()
        if rank == 0:
            storage.write_json(self._run.path(INDEX), {"checkpoints": self._listed})
            wanted = {f"{entry['step']:08d}" for entry in self._listed}
            for name in storage.names(self._run.path(FOLDER)):
                if name not in wanted:
                    storage.remove(self._run.path(FOLDER, name))
