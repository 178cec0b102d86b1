"""Train an objective on an archive with Ray Train: the loop that pretraining and distillation share.

Decides how ranks, plan, stream, engine and checkpoints fit together, and that a run goes on from its last committed
checkpoint with the numbers it would have had. What is trained comes in as a function.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from cluster.batches import sensor_specs, to_batch
from cluster.connect import connect, require_resources
from cluster.devices import peak_bf16_tflops
from cluster.engine import Engine
from cluster.filesystem import arrow_filesystem
from cluster.follow import follow
from cluster.host import BARE_FOLDER, COMMITTED, BareHost, Host, RayHost
from cluster.kept import Kept
from cluster.optimiser import OptimiserConfig
from cluster.preview import save_reconstructions
from cluster.run import Run
from cluster.snapshot import counts_of_run, plan_of
from cluster.watch import Watch
from models.compilation import compile_blocks, require_compiler
from models.recomputation import recompute_blocks
from models.sensor import SensorSpec
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError, RunFailed
from pipeline.plan import Plan
from pipeline.samples import SampleSource
from pipeline.stream import READ_CPUS, Stream, StreamConfig
from pipeline.views import CrossSensor, View

FAILURES_AT_ONCE = 3
"""Failures without a checkpoint in between that are no accident any more."""
RESIZE_SECONDS = 30.0
"""How often Ray looks whether a run with too few workers can have more."""
HOW_TO_GO_ON = "--workers 0 is without, any other number with Ray"
AVERAGE = "average.copy."
"""Before the names of the encoder's weights averaged over steps."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, with how many workers."""

    num_steps: int = 600
    batch_size: int = 32
    """Samples a lane and step; the global batch is `lanes` times as large, whatever the number of workers."""
    lanes: int = 2
    workers: str = "2"
    """Processes that train together; 'least:most' for as many as the cluster has room for at any time; 0: this process, without

    Ray and DeepSpeed.
    """
    cpus_per_worker: float = 0.75
    gpus_per_worker: float = 0.0
    window_shards: int = 4
    """Shards that a lane shuffles together."""
    sensor_sets: tuple[tuple[str, ...], ...] = ()
    """Sensors that a sample holds, one entry a set; empty: derived from the archive."""
    view: View = field(default_factory=CrossSensor)
    """Which tiles make a sample."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    checkpoint_every: int = 100
    keep_last: int = 2
    """Checkpoints of a run that stay, the last ones."""
    keep_every: int = 0
    """Steps between checkpoints that stay for ever, in RUN/kept; a multiple of `checkpoint_every`, 0: none."""
    keep_best: bool = False
    """Whether the checkpoint with the lowest mean loss since the one before stays, too."""
    timeout_s: int = 600
    """Seconds that workers wait for one another, before all are started anew."""
    health_every: int = 100
    """Steps between looks at the encoder's health (cluster/watch.py), the last step besides; 0: never. Not under ZeRO 3."""
    compile: bool = False
    """Compile the backbones' blocks: a tenth faster for a vit, after minutes (docs/benchmarks.md)."""
    recompute: bool = False
    """Compute the inside of the backbones' blocks again going back instead of keeping it: less memory, a third more operations."""
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "lanes", "checkpoint_every", "window_shards", "keep_last", "timeout_s")
        if wrong := [name for name in positive if getattr(self, name) < 1]:
            raise InputError(f"{wrong[0]} is {getattr(self, wrong[0])}, expected at least 1")
        if self.keep_every < 0 or self.keep_every % self.checkpoint_every:
            raise InputError(f"keep_every is {self.keep_every}, expected a multiple of checkpoint_every, {self.checkpoint_every}")
        if self.health_every < 0:
            raise InputError(f"health_every is {self.health_every}, expected a number of steps, or 0 for never")
        if self.compile and self.recompute:
            raise InputError("compile and recompute are both set; a compiled block keeps what it needs: choose one")
        for workers in range(max(1, self.fewest), self.most + 1):
            if self.lanes % workers:
                lcm = math.lcm(*range(max(1, self.fewest), self.most + 1))
                raise InputError(f"{self.lanes} lanes cannot be shared evenly by {workers} workers; make lanes a multiple of {lcm}")

    @property
    def fewest(self) -> int:
        """Fewest workers that the run may have."""
        return self._range[0]

    @property
    def most(self) -> int:
        """Most workers that the run may have."""
        return self._range[1]

    @property
    def _range(self) -> tuple[int, int]:
        parts = self.workers.split(":")
        if len(parts) > 2 or not all(part.isdigit() for part in parts):
            raise InputError(f"workers is '{self.workers}', expected a number, or least:most such as 2:8")
        fewest, most = int(parts[0]), int(parts[-1])
        if most < fewest or (len(parts) == 2 and fewest < 1):
            raise InputError(f"workers is '{self.workers}', expected the smaller number first, at least 1")
        return fewest, most


@dataclass(frozen=True)
class Job:
    """What every worker is given. `build` makes the objective from the archive's sensors and a seeded generator."""

    run_url: str
    archive_url: str
    name: str
    config: TrainConfig
    build: Callable[[tuple[SensorSpec, ...], torch.Generator | None], nn.Module]
    extra: dict[str, Any]
    """What the exported model's config.json says besides its shape."""

    def finished(self, sensors: tuple[SensorSpec, ...], weights: dict[str, torch.Tensor]) -> Any:
        """Return the objective with `weights` as an engine gathers them, its encoder with their average if there is one."""
        averages = {name.removeprefix(AVERAGE): weights.pop(name) for name in [*weights] if name.startswith(AVERAGE)}
        objective: Any = self.build(sensors, torch.Generator())
        objective.load_state_dict(weights)
        if averages:
            objective.encoder.load_state_dict(averages)
        return objective


def train(job: Job) -> dict[str, Any]:
    """Run `job` on the cluster to its end; return the facts for the summary."""
    run = Run(job.run_url, job.name)
    run.raise_failure()
    config = job.config
    if config.most:
        connect()
        require_resources(config.fewest, config.cpus_per_worker, READ_CPUS, config.gpus_per_worker)
    begun = run.path("checkpoints", BARE_FOLDER if config.most else COMMITTED)
    if storage.exists(begun):
        raise InputError(f"'{run.url}' was begun {'without' if config.most else 'with'} Ray and can only go on so; {HOW_TO_GO_ON}")
    # So that wrong input ends here, in one line, and not in the workers.
    archive = open_archive(job.archive_url)
    if config.compile:
        require_compiler()
    counts = counts_of_run(run, SampleSource(archive, config.view), config.sensor_sets)
    plan = plan_of(counts, config.lanes, config.batch_size, config.window_shards, config.seed)
    for window in config.stream.windows:
        window.check(archive.grid.site_size_m, [archive.sensors[n] for n in sorted({n for s in counts for n in s})])
    if unknown := {name for name, _ in config.optimiser.sensor_weights} - set(archive.sensors):
        raise InputError(f"sensor_weights names {sorted(unknown)[0]}, the archive has {', '.join(sorted(archive.sensors))}")
    with torch.device("meta"):  # shapes only: nothing is allocated
        job.build(sensor_specs(archive), None)
    started = time.time()
    with follow(run, config.num_steps):
        terms = _train_on_cluster(job, plan, run) if config.most else _train(job, plan, BareHost(run, config.keep_last))
    run.raise_failure()
    return {"steps": config.num_steps, "seconds": round(time.time() - started, 1), **terms}


def _train_on_cluster(job: Job, plan: Plan, run: Run) -> dict[str, Any]:
    """Have Ray Train's workers train, again after failures as long as they get any further in between."""
    while True:
        reached = _checkpoint_of(run)
        try:
            return _trainer(job, plan).fit().metrics or {}
        except TrainingFailedError as error:
            if _checkpoint_of(run) <= reached:
                raise
            run.event("restart", because=str(error).strip().splitlines()[-1])


def _checkpoint_of(run: Run) -> int:
    """Return the step of the last checkpoint that was begun, 0 without any."""
    return max((event["step"] for event in run.events() if event["event"] == "checkpoint"), default=0)


def _trainer(job: Job, plan: Plan) -> TorchTrainer:
    config = job.config
    filesystem, path = arrow_filesystem(job.run_url)
    gpus = {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {}
    workers: dict[str, Any] = {
        "num_workers": config.most if config.fewest == config.most else (config.fewest, config.most),
        "elastic_resize_monitor_interval_s": RESIZE_SECONDS,
        "use_gpu": bool(gpus),
        "resources_per_worker": {"CPU": config.cpus_per_worker} | gpus,
    }
    return TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "plan": plan},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=config.timeout_s),
        scaling_config=ScalingConfig(**workers),
        # Same storage and name: Ray Train takes up the run's last committed checkpoint by itself.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_last),
            failure_config=FailureConfig(max_failures=FAILURES_AT_ONCE),
        ),
    )


def _train_on_worker(settings: dict[str, Any]) -> None:
    _train(settings["job"], settings["plan"], RayHost())


def _train(job: Job, plan: Plan, host: Host) -> dict[str, Any]:
    """Train on this rank from the last checkpoint to the end; return the last step's terms."""
    config = job.config
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // host.neighbours))
    archive, run = open_archive(job.archive_url), Run(job.run_url, job.name)
    source = SampleSource(archive, config.view)
    objective = job.build(sensor_specs(archive), torch.Generator().manual_seed(config.seed))
    if config.compile:
        compile_blocks(objective)
    if config.recompute:
        recompute_blocks(objective)
    engine = host.engine(objective, config.optimiser, config.num_steps, config.batch_size, config.lanes, not config.compile)
    start = host.start(engine)
    recorder = _Recorder(run, config.num_steps, start, host.world_size) if host.rank == 0 else None
    reading = config.stream if config.most else replace(config.stream, decode="process")
    stream = Stream(source, plan, host.rank, host.world_size, start, config.num_steps, reading)
    # Under ZeRO 3 parameters are whole only inside a step: an encoder run beside it finds some of them empty (DeepSpeed 0.19).
    looks = config.health_every if config.optimiser.zero_stage < 3 else 0
    if host.rank == 0 and looks < config.health_every:
        run.event("no_health", because="parameters are partitioned, zero_stage is 3")
    watch = Watch(engine, looks, config.num_steps, config.optimiser.warmup_steps)
    kept = Kept(run, config.keep_every, config.keep_best)
    is_leaving = False
    terms: dict[str, Any] = {}
    ended = asked = time.perf_counter()
    try:
        for step, micro_batches in zip(range(start, config.num_steps), stream):
            waited = time.perf_counter() - asked
            pairs = ((to_batch(m), _generator(config.seed, step, m.lane)) for m in micro_batches)
            with _telling_of_hangs(run, host, step, config.timeout_s):
                terms = engine.step(step, pairs)
            elapsed, ended = time.perf_counter() - ended, time.perf_counter()  # with what came after the step before
            skipped = terms.pop("skipped", None)
            kept.see(terms["loss"])
            found: dict[str, Any] = {}
            if watch.is_due(step):
                found = watch.look(step, to_batch(micro_batches[0]), _generator(config.seed, step, micro_batches[0].lane))
            if recorder:
                sensor_set = "+".join(plan.sets[micro_batches[0].step.sensor_set].sensor_set)
                speed = {
                    "samples_per_second": config.lanes * config.batch_size / elapsed,
                    "data_wait_share": waited / elapsed,
                    **rates(engine, elapsed, host.world_size),
                }
                recorder.record(step, sensor_set, terms | found, speed)
                if skipped:
                    run.event("skipped", step=step, because=skipped)
            watch.diagnose(step, found)
            must_leave = not is_leaving and host.is_leaving()
            is_leaving = is_leaving or must_leave
            if must_leave or ((step + 1) % config.checkpoint_every == 0 and step + 1 < config.num_steps):
                if recorder:
                    recorder.flush()  # whoever goes on from the checkpoint does not record these steps again
                    run.event("checkpoint", step=step + 1, **({"because": "a machine will be taken away"} if must_leave else {}))
                host.commit(engine, step + 1, terms, kept, is_last=must_leave)
            asked = time.perf_counter()
    except RunFailed as failure:
        # Every rank is here. Raised further it would be tried again, for the same end.
        if recorder:
            recorder.flush()
            run.event("failed", reason=str(failure))
        return terms
    weights = engine.gather_master_weights()
    if host.rank == 0:
        assert recorder
        recorder.flush()
        trained = job.finished(sensor_specs(archive), weights)
        with storage.staged_folder(run.path("model")) as folder:
            trained.encoder.save(folder, job.extra)
        save_reconstructions(trained, replace(source, splits=("val", "test")), plan, run)
        run.event("checkpoint", step=config.num_steps)
    host.commit(engine, config.num_steps, terms, kept, is_last=True)
    return terms


@contextmanager
def _telling_of_hangs(run: Run, host: Host, step: int, timeout_s: int) -> Iterator[None]:
    """Write down that this rank has waited too long for the others: those that do not say so are the ones that hang."""
    try:
        yield
    except RuntimeError as error:
        if "timed out" in str(error).lower():
            run.event("hung", rank=host.rank, step=step, because=f"rank {host.rank} of {host.world_size} waited {timeout_s} s")
        raise


def rates(engine: Engine, seconds: float, world_size: int) -> dict[str, float]:
    """Return what a step's model operations come to on all ranks: TFLOP/s, and the share of the peak where it is known."""
    if not engine.flops:
        return {}
    tflops = engine.flops / seconds / 1e12
    peak = peak_bf16_tflops(torch.cuda.get_device_name(engine.device)) if engine.device.type == "cuda" else None
    return {"tflops_per_second": tflops * world_size} | ({"mfu": tflops / peak} if peak else {})


def _generator(seed: int, step: int, lane: int) -> torch.Generator:
    """Return the source of a micro-batch's masks: the same whichever rank serves the lane, whenever."""
    state = np.random.SeedSequence([seed, step, lane]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


class _Recorder:
    """Rank 0's metrics.jsonl: one line a step, without the lines that a restart repeats."""

    FLUSH_SECONDS = 5.0

    def __init__(self, run: Run, num_steps: int, start: int, world_size: int):
        self._url = run.path("metrics.jsonl")
        self._pending: list[str] = []
        self._written = time.monotonic()
        if storage.exists(self._url):
            lines = storage.read_bytes(self._url).decode().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < start]
            storage.write_bytes(self._url, "".join(line + "\n" for line in kept).encode())
        run.event("training", start=start, steps=num_steps, workers=world_size)

    def record(self, step: int, sensor_set: str, terms: dict[str, Any], facts: dict[str, float]) -> None:
        self._pending.append(json.dumps({"step": step, "sensor_set": sensor_set, **terms, **facts}))
        if time.monotonic() - self._written > self.FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            storage.append_line(self._url, "\n".join(self._pending))
        self._pending, self._written = [], time.monotonic()
