"""The training loop of one rank, whatever hosts it: samples, steps, looks, what is told, checkpoints.

Decides how plan, stream, engine and checkpoints fit together, and that a run goes on from its last whole checkpoint with the
numbers it would have had. What is trained comes in with the job.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cluster.batches import to_batch
from cluster.checkpoints import Kept
from cluster.counters import count
from cluster.devices import peak_bf16_tflops, peak_memory_gib
from cluster.engine import Engine
from cluster.host import Host
from cluster.job import Job, TrainConfig
from cluster.preview import save_reconstructions
from cluster.run import Run
from cluster.sinks import SinkName
from cluster.start import begin, load_weights, sensors_of
from cluster.telemetry import Recorder, TokenCount
from cluster.trace import Trace
from cluster.watch import Watch
from models.compilation import compile_blocks
from models.recomputation import recompute_blocks
from pipeline import storage
from pipeline.archive import Archive, open_archive
from pipeline.errors import InputError, RunFailed
from pipeline.plan import Plan
from pipeline.replay import Replay
from pipeline.samples import SampleSource
from pipeline.stream import MicroBatch, Stream


@dataclass(frozen=True)
class Task:
    """What every rank is given. sinks: where those write that are told of the run; replay: which samples are seen."""

    job: Job
    plan: Plan
    replay: Replay | None
    sinks: dict[SinkName, str]


def train_rank(task: Task, host: Host) -> dict[str, Any]:
    """Train on this rank from the last checkpoint to the end; return the last step's terms."""
    job, config = task.job, task.job.config
    torch.set_num_threads(config.threads_per_worker or host.threads)
    archive, run = open_archive(job.archive_url), Run(job.run_url, job.name, host.rank)
    archive.features_url = config.features
    engine = _engine(job, archive, host)
    start = host.start(engine)
    recorder = None
    if host.rank == 0:
        recorder = Recorder(run, job.extra.get("recipe", job.name), config.num_steps, start, host.world_size, task.sinks)
    kept = Kept(run, config.keep_every, config.keep_best, start, config.timeout_s) if host.rank == 0 else None
    try:
        terms = _train(task, host, engine, archive, run, start, recorder, kept)
    except RunFailed as failure:
        # Every rank is here. Raised further it would be tried again, for the same end.
        if recorder:
            recorder.close(is_finished=False)
            run.event("failed", reason=str(failure))
        return {}
    weights = engine.gather_master_weights()
    if recorder:
        recorder.close(is_finished=True)
        trained = job.finished(sensors_of(job, archive), weights)
        with storage.staged_folder(run.path("model")) as folder:
            trained.encoder.save(folder, job.extra)
        for name, encoder in getattr(trained, "encoders", {}).items():
            with storage.staged_folder(run.path("models", name)) as folder:
                encoder.save(folder, job.extra)
        save_reconstructions(trained, replace(SampleSource(archive, config.view), splits=("val", "test")), task.plan, run)
    if start < config.num_steps:  # else it is what was begun with
        _commit(task, host, engine, run, config.num_steps, terms, kept, must_wait=True)
    if kept:
        kept.settle()
    return terms


def _engine(job: Job, archive: Archive, host: Host) -> Engine:
    config = job.config
    objective = job.build(sensors_of(job, archive), torch.Generator().manual_seed(config.seed))
    weights = begin(objective, load_weights(job.start)) if job.start else {}
    if config.compile:
        compile_blocks(objective)
    if config.recompute:
        recompute_blocks(objective)
    engine = host.engine(objective, config.optimiser, config.num_steps, config.batch_size, config.lanes, not config.compile)
    engine.begin_with(weights)
    return engine


def _train(
    task: Task, host: Host, engine: Engine, archive: Archive, run: Run, start: int, recorder: Recorder | None, kept: Kept | None
) -> dict[str, Any]:
    """Take the steps from `start` on; return the last one's terms."""
    config, plan = task.job.config, task.plan
    watch, trace = _watch(config, engine, host, run), None
    if host.rank == 0 and config.profile and start < config.num_steps:
        trace = Trace(run, start, config.num_steps, config.profile, engine.device)
    reading = config.stream if config.most else replace(config.stream, decode="process")
    source = SampleSource(archive, config.view, replay=task.replay)
    stream = Stream(source, plan, host.rank, host.world_size, start, config.num_steps, reading)
    objective: Any = engine.objective
    tokens = TokenCount(objective.encoder.backbone)
    terms: dict[str, Any] = {}
    is_leaving = False
    ended = asked = time.perf_counter()
    spent = time.process_time()
    for step, micro_batches in zip(range(start, config.num_steps), stream):
        waited = time.perf_counter() - asked
        pairs = ((to_batch(m), _generator(config.seed, step, m.lane)) for m in micro_batches)
        with _telling_of_hangs(run, host, step, config.timeout_s):
            terms = engine.step(step, pairs)
        elapsed, ended = time.perf_counter() - ended, time.perf_counter()  # with what came after the step before
        busy, spent = time.process_time() - spent, time.process_time()
        skipped, num_tokens = terms.pop("skipped", None), tokens.take()
        if kept:
            kept.see(terms["loss"])
        found: dict[str, Any] = {}
        if watch.is_due(step):
            found = watch.look(step, to_batch(micro_batches[0]), _generator(config.seed, step, micro_batches[0].lane))
        count("samples", config.batch_size * len(micro_batches), run=run.url)
        if recorder:
            facts = _facts(config, engine, elapsed, waited, busy, num_tokens, host.world_size)
            recorder.record(step, _set_of(plan, micro_batches), terms | found, facts)
            if skipped:
                run.event("skipped", step=step, because=skipped)
        watch.diagnose(step, found)
        with _telling_of_hangs(run, host, step, config.timeout_s):
            must_leave = not is_leaving and host.is_leaving()
        is_leaving = is_leaving or must_leave
        if step + 1 < config.num_steps and (must_leave or (step + 1) % config.checkpoint_every == 0):
            if recorder:
                recorder.flush()  # whoever goes on from the checkpoint does not record these steps again
            because = {"because": host.why_leaving} if must_leave else {}
            _commit(task, host, engine, run, step + 1, terms, kept, must_leave, **because)
            if must_leave:
                host.leave()
        if trace:
            trace.step()
        asked = time.perf_counter()
    return terms


def _watch(config: TrainConfig, engine: Engine, host: Host, run: Run) -> Watch:
    # Under ZeRO 3 parameters are whole only inside a step: an encoder run beside it finds some of them empty (DeepSpeed 0.19).
    looks = config.health_every if config.optimiser.zero_stage < 3 or not config.most else 0
    if host.rank == 0 and looks < config.health_every:
        run.event("no_health", because="parameters are partitioned, zero_stage is 3")
    return Watch(engine, looks, config.num_steps, config.optimiser.warmup_steps)


def _commit(
    task: Task,
    host: Host,
    engine: Engine,
    run: Run,
    next_step: int,
    terms: dict[str, Any],
    kept: Kept | None,
    must_wait: bool,
    **because: str,
) -> None:
    config = task.job.config
    if kept and config.keep_last == 1 and not must_wait:
        kept.settle()  # before the next one has it removed
    loss = kept.take_loss() if kept else None
    with _telling_of_hangs(run, host, next_step - 1, config.timeout_s):
        host.commit(engine, next_step, terms, {"loss": loss, **task.job.extra}, must_wait)
    if kept:
        kept.settle()
        kept.add(next_step, loss)
        run.event("checkpoint", step=next_step, **because)


@contextmanager
def _telling_of_hangs(run: Run, host: Host, step: int, timeout_s: int) -> Iterator[None]:
    """Write down that this rank has waited too long for the others: those that do not say so are the ones that hang."""
    try:
        yield
    except Exception as error:  # torch and Ray each have a class of their own for it
        if "timed out" in str(error).lower() and not isinstance(error, InputError):  # that is a store's
            run.event("hung", rank=host.rank, step=step, because=f"rank {host.rank} of {host.world_size} waited {timeout_s} s")
        raise


def _set_of(plan: Plan, micro_batches: list[MicroBatch]) -> str:
    return "+".join(plan.sets[micro_batches[0].step.sensor_set].sensor_set)


def _facts(
    config: TrainConfig, engine: Engine, seconds: float, waited: float, busy: float, num_tokens: int, world_size: int
) -> dict[str, float]:
    """Return what a step's line says of speed and memory: all ranks', but for the first one's wait, processors and memory."""
    facts = {
        "samples_per_second": config.lanes * config.batch_size / seconds,
        "tokens_per_second": num_tokens * world_size / seconds,
        "data_wait_share": waited / seconds,
        "processors_busy": busy / seconds,
        "memory_gib": peak_memory_gib(engine.device),
    }
    if engine.flops:
        tflops = engine.flops / seconds / 1e12
        facts["tflops_per_second"] = tflops * world_size
        if engine.device.type == "cuda" and (peak := peak_bf16_tflops(torch.cuda.get_device_name(engine.device))):
            facts["mfu"] = tflops / peak
    return facts


def _generator(seed: int, step: int, lane: int) -> torch.Generator:
    """Return the source of a micro-batch's masks: the same whichever rank serves the lane, whenever."""
    state = np.random.SeedSequence([seed, step, lane]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
