"""Where a training loop runs: under Ray Train on any number of workers, or in this process with nothing around it.

A host gives the loop its rank and its engine, the step to begin with, and a safe place for checkpoints. What is trained,
on which samples, and what is recorded is the same on both.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
from torch import nn

from cluster.bare import BareEngine
from cluster.checkpoints import ABOUT, BARE_FOLDER, name_of
from cluster.engine import Engine
from cluster.optimiser import OptimiserConfig
from cluster.run import Run
from cluster.zero import ZeroEngine
from pipeline import storage

NOTICE_SECONDS = 2.0
"""How often Ray is asked whether a machine will be taken away: a call to an actor that all ranks wait for."""


class Host(ABC):
    """rank of world_size, of which neighbours are on this machine."""

    rank, world_size, neighbours = 0, 1, 1
    why_leaving = "a machine is leaving"

    @property
    def threads(self) -> int:
        """Threads that this rank may compute with: its share of the machine."""
        return max(1, (os.cpu_count() or 1) // self.neighbours)

    @abstractmethod
    def engine(
        self, objective: nn.Module, config: OptimiserConfig, num_steps: int, batch_size: int, lanes: int, counts_flops: bool
    ) -> Engine:
        """Return what takes the steps of `lanes` micro-batches over all ranks."""

    @abstractmethod
    def start(self, engine: Engine) -> int:
        """Restore the run's last whole checkpoint, if it has one; return the step to begin with."""

    @abstractmethod
    def commit(self, engine: Engine, next_step: int, terms: dict[str, Any], about: dict[str, Any], must_wait: bool) -> None:
        """Save and make it the run's checkpoint once all of it is stored; every rank must call it. about: what it is of."""

    def _save(self, engine: Engine, folder: str, next_step: int, about: dict[str, Any]) -> None:
        engine.save(folder, next_step)
        if self.rank == 0:
            content = {"next_step": next_step, "workers": self.world_size, **about}
            storage.write_json(storage.join(folder, ABOUT), content)

    def is_leaving(self) -> bool:
        """Return whether a machine of the run has been told that it will be taken away; the same on every rank."""
        return False

    def leave(self) -> None:  # noqa: B027  # a machine that is taken away takes its workers along
        """Do what is to be done once a checkpoint is safe that was made because the machine `is_leaving`."""


class RayHost(Host):
    """A worker of Ray Train: DeepSpeed over all of them, checkpoints by Ray Train, stored while training goes on."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.neighbours = context.get_local_world_size()
        self._asked = time.monotonic()

    def engine(
        self, objective: nn.Module, config: OptimiserConfig, num_steps: int, batch_size: int, lanes: int, counts_flops: bool
    ) -> Engine:
        return ZeroEngine(objective, config, num_steps, batch_size, lanes // self.world_size, counts_flops)

    def start(self, engine: Engine) -> int:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as folder:
            return engine.load(folder)

    def commit(self, engine: Engine, next_step: int, terms: dict[str, Any], about: dict[str, Any], must_wait: bool) -> None:
        folder = tempfile.mkdtemp(prefix="terraloom-checkpoint-")
        self._save(engine, folder, next_step, about)
        ray.train.report(
            terms,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=name_of(next_step),
            checkpoint_upload_mode=CheckpointUploadMode.SYNC if must_wait else CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def is_leaving(self) -> bool:
        is_due = torch.tensor(time.monotonic() - self._asked >= NOTICE_SECONDS, dtype=torch.int32, device=get_device())
        if self.world_size > 1:
            dist.broadcast(is_due, 0)  # all ranks ask, or none
        if not is_due:
            return False
        self._asked = time.monotonic()
        return ray.train.get_preemption_info() is not None


class BareHost(Host):
    """This process, plain torch, the folder `RUN/checkpoints/bare`."""

    why_leaving = "told to end"

    def __init__(self, run: Run, keep_last: int):
        self._folder, self._keep_last = run.path("checkpoints", BARE_FOLDER), keep_last
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._is_told = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM, by which schedulers say that a process has to go, has it save a checkpoint first.

        Where it is somebody else's, such as Ray's in its tasks, it stays so.
        """
        is_free = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if not is_free:
            yield
            return
        signal.signal(signal.SIGTERM, self._be_told)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _be_told(self, number: int, frame: Any) -> None:
        self._is_told = True

    def is_leaving(self) -> bool:
        return self._is_told

    def leave(self) -> None:
        print("terraloom: told to end; a checkpoint is stored, the same command goes on from it", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    @property
    def threads(self) -> int:
        """Threads that this process was told to use (Ray tells its tasks, by the CPUs that they hold), else all."""
        return int(os.environ.get("OMP_NUM_THREADS") or super().threads)

    def engine(
        self, objective: nn.Module, config: OptimiserConfig, num_steps: int, batch_size: int, lanes: int, counts_flops: bool
    ) -> Engine:
        return BareEngine(objective, config, num_steps, lanes, self._device, counts_flops)

    def start(self, engine: Engine) -> int:
        if not (found := storage.names(self._folder)):
            return 0
        with storage.local_copy(storage.join(self._folder, found[-1])) as folder:
            return engine.load(str(folder))

    def commit(self, engine: Engine, next_step: int, terms: dict[str, Any], about: dict[str, Any], must_wait: bool) -> None:
        with storage.staged_folder(storage.join(self._folder, name_of(next_step))) as folder:
            self._save(engine, str(folder), next_step, about)
        for name in storage.names(self._folder)[: -self._keep_last]:
            storage.remove(storage.join(self._folder, name))
