"""Have an objective trained on an archive: in this process, or by Ray Train's workers, which are started anew as often as it takes.

Decides what is checked before anything starts, and what a failure leads to. The loop of each rank is `loop.py`'s.
"""

import os
import time
from dataclasses import replace
from typing import Any

import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.admission import require_memory
from cluster.checkpoints import BARE_FOLDER, COMMITTED
from cluster.connect import connect, require_resources
from cluster.experts import require_shareable
from cluster.filesystem import arrow_filesystem
from cluster.follow import follow
from cluster.host import BareHost, RayHost
from cluster.job import Job
from cluster.loop import Task, train_rank
from cluster.run import Run
from cluster.seen_again import enough, replay_of_run
from cluster.sinks import require_sinks
from cluster.snapshot import counts_of_run, plan_of
from cluster.start import load_weights, require_fit, sensors_of
from models.compilation import require_compiler
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError
from pipeline.plan import Plan
from pipeline.replay import Replay
from pipeline.samples import SampleSource
from pipeline.stream import READ_CPUS

FAILURES_AT_ONCE = 3
"""Failures without a checkpoint in between that are no accident any more."""
RESIZE_SECONDS = 30.0
"""How often Ray looks whether a run with too few workers can have more."""
START_SECONDS = 30
"""How long Ray Train waits for room for all workers before it looks again how many there is room for (its default: 60). Right
after a machine is lost its resources are still counted.
"""
HEALTH_SECONDS = 60
"""How much longer than workers wait for one another Ray's controller waits for one that does not answer."""
SHUTDOWN_SECONDS = 1
"""How long Ray's controller waits for failed workers to leave their process group: one that hangs never does."""


def train(job: Job) -> dict[str, Any]:
    """Run `job` to its end; return the facts for the summary."""
    run, config = Run(job.run_url, job.name), job.config
    run.raise_failure()
    # So that wrong input ends here, in one line, and not in the workers.
    sinks = require_sinks(config.sinks, run)
    _require_same_host(run, bool(config.most))
    if config.most:
        connect()
        require_resources(config.fewest, config.cpus_per_worker, READ_CPUS, config.gpus_per_worker)
    if config.compile:
        require_compiler()
    task = Task(job, *_plan(job, run), sinks)
    started = time.time()
    with storage.patient(), follow(run, config.num_steps):
        terms = _train_on_cluster(task, run) if config.most else _train_here(task, run)
    run.raise_failure()
    return {"steps": config.num_steps, "seconds": round(time.time() - started, 1), **terms}


def _require_same_host(run: Run, has_ray: bool) -> None:
    if storage.exists(run.path("checkpoints", BARE_FOLDER if has_ray else COMMITTED)):
        begun = "without Ray; go on with --workers 0" if has_ray else "with Ray; go on with --workers 1 or more"
        raise InputError(f"'{run.url}' was begun {begun}")


def _plan(job: Job, run: Run) -> tuple[Plan, Replay | None]:
    """Return which samples the run sees when, having checked that objective, start and windows suit the archive."""
    archive, config = open_archive(job.archive_url), job.config
    source = SampleSource(archive, config.view)
    replay = replay_of_run(run, source, config)
    counts = counts_of_run(run, replace(source, replay=replay), config.sensor_sets)
    if replay:
        counts = enough(counts, config.lanes, run)
    for window in config.stream.windows:
        window.check(archive.grid.site_size_m, [archive.sensors[n] for n in sorted({n for s in counts for n in s})])
    if unknown := {name for name, _ in config.optimiser.sensor_weights} - set(archive.sensors):
        raise InputError(f"sensor_weights names {sorted(unknown)[0]}, the archive has {', '.join(sorted(archive.sensors))}")
    with torch.device("meta"):  # shapes only: nothing is allocated
        shapes = job.build(sensors_of(job, archive), None)
    if job.start:
        run.event("start", **require_fit(shapes, load_weights(job.start)))
    if config.optimiser.expert_parallel:
        require_shareable(shapes, range(max(1, config.fewest), config.most + 1))
    if config.most:
        require_memory(job, shapes)
    plan = plan_of(counts, config.lanes, config.batch_size, config.window_shards, config.seed, config.share_exponent)
    return plan, replay


def _train_here(task: Task, run: Run) -> dict[str, Any]:
    host = BareHost(run, task.job.config.keep_last)
    with host.listening():
        return train_rank(task, host)


def _train_on_cluster(task: Task, run: Run) -> dict[str, Any]:
    """Have Ray Train's workers train, again after failures as long as they get any further in between."""
    while True:
        reached = _checkpoint_of(run)
        try:
            return _trainer(task).fit().metrics or {}
        except TrainingFailedError as error:
            if _checkpoint_of(run) <= reached:
                raise
            run.event("restart", because=str(error).strip().splitlines()[-1])


def _checkpoint_of(run: Run) -> int:
    """Return the step of the last checkpoint that was handed over, 0 without any."""
    return max((event["step"] for event in run.events() if event["event"] == "checkpoint"), default=0)


class _Impatient(UserCallback):
    """Runs in Ray Train's controller, which reads this variable of its own process only (2.60)."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        os.environ["TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S"] = str(SHUTDOWN_SECONDS)


def _trainer(task: Task) -> TorchTrainer:
    config = task.job.config
    # What Ray Train waits for besides torch: for ever, and 10 minutes. Those that wait for one that hangs say so first.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(config.timeout_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.timeout_s + HEALTH_SECONDS)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    filesystem, path = arrow_filesystem(task.job.run_url)
    gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    workers: dict[str, Any] = {
        "num_workers": config.most if config.fewest == config.most else (config.fewest, config.most),
        "elastic_resize_monitor_interval_s": RESIZE_SECONDS,
        "use_gpu": bool(gpus),
        "resources_per_worker": {"CPU": config.cpus_per_worker} | gpus,
    }
    return TorchTrainer(
        _train_on_worker,
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=config.timeout_s),
        scaling_config=ScalingConfig(**workers),
        # Same storage and name: Ray Train takes up the run's last committed checkpoint by itself.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_last),
            failure_config=FailureConfig(max_failures=FAILURES_AT_ONCE),
            callbacks=[_Impatient()],  # type: ignore[list-item]  # declared for the first version of Ray Train
        ),
    )


def _train_on_worker(settings: dict[str, Any]) -> None:
    with storage.patient():
        train_rank(settings["task"], RayHost())
