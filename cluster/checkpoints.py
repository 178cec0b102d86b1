"""Where a run's checkpoints are, and those that stay in RUN/kept when the run's own, the last few, have gone.

One that is to stay is copied once it is whole, from storage to storage, and listed in RUN/kept.json once the copy is.
"""

import json
import math
import time
from statistics import fmean
from typing import Any

from cluster.run import Run
from pipeline import storage
from pipeline.errors import InputError

FOLDER, INDEX = "kept", "kept.json"
BARE_FOLDER = "bare"
"""In RUN/checkpoints, what a run without Ray writes."""
ABOUT = "checkpoint.json"
"""In a checkpoint, what it is of: the step to go on with, the number of workers that wrote it, and all settings."""
COMMITTED = "checkpoint_manager_snapshot.json"
"""In RUN/checkpoints, where Ray Train (2.60) says which of them are whole."""
POLL_SECONDS = 0.2
PATIENCE = 50
"""How often a file is read that is just being written."""


def name_of(next_step: int) -> str:
    """Return the name of the checkpoint that a run goes on from with `next_step`."""
    return f"{next_step:08d}"


def whole_checkpoint(run: Run, next_step: int) -> str | None:
    """Return the run's own checkpoint of `next_step`, None while there is none or not all of it is stored."""
    bare = run.path("checkpoints", BARE_FOLDER, name_of(next_step))
    if storage.exists(bare):
        return bare
    listed = [one["checkpoint_dir_name"] for one in _committed(run).get("checkpoint_results", [])]
    return run.path("checkpoints", name_of(next_step)) if name_of(next_step) in listed else None


def checkpoint_url(run: Run, step: int | None) -> str:
    """Return the folder of the run's last whole checkpoint, or of the one that was kept of `step`."""
    if step is not None:
        kept = [one["step"] for one in kept_of(run)]
        if step not in kept:
            found = ", ".join(map(str, kept)) or "none"
            raise InputError(
                f"'{run.url}' has kept no checkpoint of step {step} (has {found}); give one of them, or none for the last"
            )
        return run.path(FOLDER, name_of(step))
    if bare := storage.names(run.path("checkpoints", BARE_FOLDER)):
        return run.path("checkpoints", BARE_FOLDER, bare[-1])
    if not (last := _committed(run).get("latest_checkpoint_result")):
        raise InputError(f"'{run.url}' has no checkpoint yet; wait for its first, or give another run")
    return run.path("checkpoints", last["checkpoint_dir_name"])


def _committed(run: Run) -> dict[str, Any]:
    """Return what Ray Train says of the run's checkpoints, {} before there is one. It writes this file in place."""
    url = run.path("checkpoints", COMMITTED)
    for _ in range(PATIENCE):
        try:
            return storage.read_json(url) if storage.exists(url) else {}
        except json.JSONDecodeError:
            time.sleep(POLL_SECONDS)
    raise InputError(f"'{url}' is no JSON; remove it, and the run begins anew")


def kept_of(run: Run) -> list[dict[str, Any]]:
    """Return what RUN/kept.json lists, in the order of steps."""
    return storage.read_json(run.path(INDEX))["checkpoints"] if storage.exists(run.path(INDEX)) else []


class Kept:
    """Has a checkpoint stay every `every` steps (0: none) and, if `keeps_best`, the one with the lowest mean loss before it.

    The loss is that of training, over the steps since the last checkpoint. One rank has it. `start`: the checkpoint that it
    begins with, which whoever ended before may not have come to copy; `ABOUT` in it has the loss before it.
    """

    def __init__(self, run: Run, every: int, keeps_best: bool, start: int = 0, timeout_s: float = 600.0):
        self._run, self._every, self._keeps_best, self._timeout_s = run, every, keeps_best, timeout_s
        self._listed = kept_of(run)
        self._losses: list[float] = []
        self._next: dict[str, Any] | None = None
        if start and start not in [one["step"] for one in self._listed]:
            about = storage.join(whole_checkpoint(run, start) or "", ABOUT)
            self.add(start, storage.read_json(about).get("loss") if storage.exists(about) else None)

    def see(self, loss: float) -> None:
        """Remember a step's loss."""
        if math.isfinite(loss):
            self._losses.append(loss)

    def take_loss(self) -> float | None:
        """Return the mean loss since this was last asked, None without any."""
        losses, self._losses = self._losses, []
        return fmean(losses) if losses else None

    def add(self, next_step: int, loss: float | None) -> None:
        """Have the checkpoint of `next_step`, with that mean loss before it, stay if it is one to, once `settle` is called."""
        best = min((one["loss"] for one in self._listed if one["is_best"]), default=math.inf)
        is_best, is_due = self._keeps_best and loss is not None and loss < best, self._is_due(next_step)
        if is_best or is_due:
            self._next = {"step": next_step, "loss": loss, "is_due": is_due, "is_best": is_best}

    def settle(self) -> None:
        """Copy what was added last, waiting until it is whole; remove what was the best before."""
        if not (entry := self._next):
            return
        self._next = None
        storage.copy_folder(self._wait_for(entry["step"]), self._run.path(FOLDER, name_of(entry["step"])))
        others = [one | {"is_best": one["is_best"] and not entry["is_best"]} for one in self._listed]
        self._listed = [one for one in (*others, entry) if one["is_due"] or one["is_best"]]
        storage.write_json(self._run.path(INDEX), {"checkpoints": self._listed})
        wanted = {name_of(one["step"]) for one in self._listed}
        for name in storage.names(self._run.path(FOLDER)):
            if name not in wanted:
                storage.remove(self._run.path(FOLDER, name))

    def _is_due(self, next_step: int) -> bool:
        return bool(self._every) and next_step % self._every == 0

    def _wait_for(self, next_step: int) -> str:
        until = time.monotonic() + self._timeout_s
        while not (found := whole_checkpoint(self._run, next_step)):
            if time.monotonic() > until:
                raise TimeoutError(f"the checkpoint of step {next_step} was not whole after {self._timeout_s:g} s")
            time.sleep(POLL_SECONDS)
        return found
