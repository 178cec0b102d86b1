"""Train an objective on an archive with Ray Train: the loop that pretraining and distillation share.

Decides how ranks, plan, stream, engine and checkpoints fit together, and that a run goes on from its last committed
checkpoint with the numbers it would have had. What is trained comes in as a function.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from cluster.batches import sensor_specs, to_batch
from cluster.capacity import require_memory
from cluster.connect import connect, require_resources
from cluster.devices import peak_bf16_tflops
from cluster.engine import Engine
from cluster.filesystem import arrow_filesystem
from cluster.follow import follow
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
from pipeline.samples import SampleSource
from pipeline.stream import READ_CPUS, Stream, StreamConfig
from pipeline.views import CrossSensor, View


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, with how many workers."""

    num_steps: int = 600
    batch_size: int = 32
    """Samples a lane and step; the global batch is `lanes` times as large, whatever the number of workers."""
    lanes: int = 2
    workers: int = 2
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
    health_every: int = 100
    """Steps between looks at the encoder's health (cluster/watch.py), the last step besides; 0: never. Not under ZeRO 3."""
    compile: bool = False
    """Compile the backbones' blocks: a tenth faster for a vit, after minutes (docs/benchmarks.md)."""
    recompute: bool = False
    """Compute the inside of the backbones' blocks again going back instead of keeping it: less memory, a third more operations."""
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        if min(self.num_steps, self.batch_size, self.lanes, self.workers, self.checkpoint_every, self.window_shards) < 1:
            raise InputError("num_steps, batch_size, lanes, workers, checkpoint_every and window_shards must be at least 1")
        if self.health_every < 0:
            raise InputError(f"health_every is {self.health_every}, expected a number of steps, or 0 for never")
        if self.compile and self.recompute:
            raise InputError("compile and recompute are both set; a compiled block keeps what it needs: choose one")
        if self.lanes % self.workers:
            raise InputError(f"{self.lanes} lanes cannot be shared evenly by {self.workers} workers; make lanes a multiple")


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


def train(job: Job) -> dict[str, Any]:
    """Run `job` on the cluster to its end; return the facts for the summary."""
    run = Run(job.run_url, job.name)
    run.raise_failure()
    connect()
    require_resources(job.config.workers, job.config.cpus_per_worker, READ_CPUS, job.config.gpus_per_worker)
    # So that wrong input ends here, in one line, and not in the workers.
    archive, config = open_archive(job.archive_url), job.config
    if config.compile:
        require_compiler()
    counts = counts_of_run(run, SampleSource(archive, config.view), config.sensor_sets)
    plan = plan_of(counts, config.lanes, config.batch_size, config.window_shards, config.seed)
    if config.stream.crops:
        config.stream.crops.check(archive.grid.site_size_m, [archive.sensors[n] for n in sorted({n for s in counts for n in s})])
    with torch.device("meta"):  # shapes only: nothing is allocated
        shapes = job.build(sensor_specs(archive), None)
    require_memory(shapes, config.optimiser, config.workers, config.gpus_per_worker)
    filesystem, path = arrow_filesystem(job.run_url)
    started = time.time()
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "plan": plan},
        torch_config=TorchConfig(backend="nccl" if job.config.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.config.workers,
            use_gpu=job.config.gpus_per_worker > 0,
            resources_per_worker={"CPU": job.config.cpus_per_worker}
            | ({"GPU": job.config.gpus_per_worker} if job.config.gpus_per_worker else {}),
        ),
        # Same storage and name: Ray Train takes up the run's last committed checkpoint by itself.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    with follow(run, job.config.num_steps):
        metrics = trainer.fit().metrics or {}
    run.raise_failure()
    return {"steps": job.config.num_steps, "seconds": round(time.time() - started, 1), **metrics}


def _train_on_worker(settings: dict[str, Any]) -> None:
    job, plan = settings["job"], settings["plan"]
    config, context = job.config, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    archive, run = open_archive(job.archive_url), Run(job.run_url, job.name)
    source = SampleSource(archive, config.view)
    objective = job.build(sensor_specs(archive), torch.Generator().manual_seed(config.seed))
    if config.compile:
        compile_blocks(objective)
    if config.recompute:
        recompute_blocks(objective)
    accumulate = config.lanes // world_size
    engine = Engine(objective, config.optimiser, config.num_steps, config.batch_size, accumulate, counts_flops=not config.compile)
    start = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            start = engine.load(folder)
    recorder = _Recorder(run, config.num_steps, start, world_size) if rank == 0 else None
    stream = Stream(source, plan, rank, world_size, start, config.num_steps, config.stream)
    # Under ZeRO 3 parameters are whole only inside a step: an encoder run beside it finds some of them empty (DeepSpeed 0.19).
    looks = config.health_every if config.optimiser.zero_stage < 3 else 0
    if rank == 0 and looks < config.health_every:
        run.event("no_health", because="parameters are partitioned, zero_stage is 3")
    watch = Watch(engine, looks, config.num_steps, config.optimiser.warmup_steps)
    terms: dict[str, Any] = {}
    before = time.perf_counter()
    try:
        for step, micro_batches in zip(range(start, config.num_steps), stream):
            waited = time.perf_counter() - before
            pairs = ((to_batch(m), _generator(config.seed, step, m.lane)) for m in micro_batches)
            terms = engine.step(step, pairs)
            elapsed = time.perf_counter() - before
            found: dict[str, Any] = {}
            if watch.is_due(step):
                found = watch.look(step, to_batch(micro_batches[0]), _generator(config.seed, step, micro_batches[0].lane))
            if recorder:
                sensor_set = "+".join(plan.sets[micro_batches[0].step.sensor_set].sensor_set)
                speed = {
                    "samples_per_second": config.lanes * config.batch_size / elapsed,
                    "data_wait_share": waited / elapsed,
                    **rates(engine, elapsed, world_size),
                }
                recorder.record(step, sensor_set, terms | found, speed)
            watch.diagnose(step, found)
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.num_steps:
                if recorder:
                    recorder.flush()  # whoever goes on from the checkpoint does not record these steps again
                _commit(engine, step + 1, terms, rank, run)
            before = time.perf_counter()
    except RunFailed as failure:
        # Every rank is here. Raised further it would be tried again, for the same end.
        if recorder:
            recorder.flush()
            run.event("failed", reason=str(failure))
        return
    weights = engine.gather_master_weights()
    if rank == 0:
        assert recorder
        recorder.flush()
        trained: Any = job.build(sensor_specs(archive), torch.Generator())
        trained.load_state_dict(weights)
        with storage.staged_folder(run.path("model")) as folder:
            trained.encoder.save(folder, job.extra)
        save_reconstructions(trained, replace(source, splits=("val", "test")), plan, run)
    _commit(engine, config.num_steps, terms, rank, run)


def rates(engine: Engine, seconds: float, world_size: int) -> dict[str, float]:
    """Return what a step's model operations come to on all ranks: TFLOP/s, and the share of the peak where it is known."""
    if not engine.flops:
        return {}
    tflops = engine.flops / seconds / 1e12
    peak = peak_bf16_tflops(torch.cuda.get_device_name(engine.device)) if engine.device.type == "cuda" else None
    return {"tflops_per_second": tflops * world_size} | ({"mfu": tflops / peak} if peak else {})


def _commit(engine: Engine, next_step: int, terms: dict[str, Any], rank: int, run: Run) -> None:
    """Save on every rank and hand it to Ray Train, which makes it the run's checkpoint once all of it is stored."""
    name = f"{next_step:08d}"
    with tempfile.TemporaryDirectory() as folder:
        engine.save(folder, next_step)
        ray.train.report(terms, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)
    if rank == 0:
        run.event("checkpoint", step=next_step)


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
