"""terraloom evaluate TASK MODEL_RUN RUN: models compared on labels of archives, beside the baselines, cell by cell.

A task is a label of an archive; TASK may name several, or all. Labels about one tile are asked of each sensor; labels about a
site's dates together (changed, flooded) of all its sensors. A run that was stopped goes on with the cells that are missing.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError
from tyro.conf import OmitArgPrefixes

from cluster.run import Run, require_run
from jobs.archives import TASK_CPUS
from jobs.evaluation import cell as cells
from jobs.evaluation.cell import REFUSED, Cell
from jobs.evaluation.cloud_removal import CloudRemoval
from jobs.evaluation.contenders import Contender, contenders
from jobs.evaluation.disturbances import suite
from jobs.evaluation.features import FeatureStore
from jobs.evaluation.fractions import check_fractions, write_list
from jobs.evaluation.overlap import overlaps
from jobs.evaluation.pan_sharpening import PanSharpening
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.plan import Work, answered, failed, pairs_of, protocols_of, too_few
from jobs.evaluation.protocols import load_protocol
from jobs.evaluation.question import TrainingConfig
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.table import gains_of, notes_of, table_of
from jobs.evaluation.task import Task, check_ignored, label_task
from jobs.evaluation.tiles import TileReader
from jobs.progress import gather
from models.errors import InputError as ModelInputError
from pipeline import storage
from pipeline.archive import Archive, open_archive
from pipeline.errors import InputError, RunFailed

ALL = "all"
RESTORATION: dict[str, Callable[[Archive], Task]] = {"cloud_removal": CloudRemoval, "pan_sharpening": PanSharpening}
"""Tasks that need no label."""
LOOKED_AT = 4
"""Training samples whose units and values each model is asked about before anything is computed."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How models are compared. Every number has a 95 % bootstrap interval over the test samples."""

    seeds: int = 3
    """Each draws its own share of the labels, heads, order of training, and random initialisation."""
    sensors: tuple[str, ...] = ()
    """Sensors to evaluate; empty: all that a model and the labels share."""
    protocols: tuple[str, ...] = ()
    """Of knn, linear, sgd, finetune, decoder, pixel_decoder, restore, restore_tuned, restore_other_date; empty: linear and knn,
    for maps decoder, for images restore. Baselines always.
    """
    label_fractions: tuple[float, ...] = (1.0,)
    """Shares of the training labels, such as 0.01 0.1 1; smaller ones are parts of the larger."""
    ignore: tuple[str, ...] = ()
    """Classes that count for nothing, such as clutter."""
    robustness: bool = False
    """Also ask about disturbed test tiles (docs/robustness.md): one seed, all labels, the first protocol of each task."""
    allow_overlap: tuple[str, ...] = ()
    """Tasks whose test places may have been seen in pretraining."""
    baselines: bool = True
    """False: the models alone, to compare them with one another."""
    external: tuple[str, ...] = ()
    """Descriptions (JSON) of encoders of others for the same table; cluster/external.py says what they hold."""
    training: OmitArgPrefixes[TrainingConfig] = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}, expected at least 1")
        check_fractions(self.label_fractions)
        for name in self.protocols:
            load_protocol(name)


def evaluate(
    task: str, model_url: str, also: tuple[str, ...], data: tuple[str, ...], run_url: str, config: EvaluateConfig
) -> dict[str, Any]:
    """Compare the model of `model_url`, those of `also`, and the baselines on labels `task` of the archives."""
    run = Run(run_url, "evaluate")
    models = [require_run(url, ("pretrain", "distill"), "model/config.json") for url in (model_url, *also)]
    urls = data or (storage.read_json(models[0].path("config.json"))["inputs"]["archive"],)
    archives = [open_archive(url) for url in urls]
    tasks = tasks_of(task, archives, config.ignore)
    digests = {archive.url: archive.digest() for archive in archives}
    compared = contenders(models, config.seeds, config.external)
    if not config.baselines:
        compared = [contender for contender in compared if contender.parameters is not None]
    asked, left_out = chosen_samples(tasks, compared, config, must=task != ALL)
    seen = overlaps(asked, models, config.allow_overlap)
    inputs = {"task": task, "models": [m.url for m in models], "archives": list(digests), "digests": list(digests.values())}
    finished = run.begin(config, inputs)
    if finished and not finished["failed"]:
        return finished
    works: list[Work] = []
    for one, samples in asked:
        disturbances = suite(samples, one.archive, one.kind) if config.robustness else []
        works += works_of(one, samples, compared, config, digests, run.url, [None, *disturbances])
    failures = answer_all(works, run)
    rows = cells.read(run.url)
    if len(failures) == len(works):
        raise RunFailed(f"none of the {len(works)} cells could be answered; the first: {next(iter(failures.values()))}")
    asked_for = {work.cell.key: rows[work.cell.key] for work in works}
    table = table_of(cells.frame(asked_for))
    refused = [f"{work.cell}: {row.error}" for work in works if (row := rows[work.cell.key]).error.startswith(REFUSED)]
    failed_cells = [f"failed: {name}: {why}" for name, why in failures.items()]
    notes = [*notes_of(table, gains_of(run.url, asked_for)), *left_out, *seen, *refused, *failed_cells]
    metric = ", ".join(dict.fromkeys(one.metric for one, _ in asked))
    return run.finish({**inputs, "metric": metric, "cells": len(works), "failed": len(failures), "table": table, "notes": notes})


def tasks_of(named: str, archives: Sequence[Archive], ignored: tuple[str, ...]) -> list[Task]:
    """Return the tasks that `named` asks for: 'all', or names of labels and of RESTORATION divided by commas."""
    known = sorted({name for archive in archives for name in archive.labels}) + sorted(RESTORATION)
    names = known if named == ALL else named.split(",")
    where = ", ".join(f"'{archive.url}'" for archive in archives)
    for name in names:
        if name not in known:
            labels = ", ".join(known)
            raise InputError(f"task '{name}' is no label of archive {where} (labels: {labels}); coregister it with --labels")
    found = [label_task(archive, name, ignored) for name in names for archive in archives if name in archive.labels]
    check_ignored(ignored, found)
    return [*found, *(made for name in names if name in RESTORATION for made in _restoration(name, archives, named != ALL))]


def _restoration(name: str, archives: Sequence[Archive], must: bool) -> list[Task]:
    """Return a task of each archive that has samples for it; of all where it was asked for by name and none has."""
    made = [RESTORATION[name](archive) for archive in archives]
    return [task for task in made if task.samples(frozenset(task.archive.sensors))] or (made if must else [])


def chosen_samples(
    tasks: Sequence[Task], compared: Sequence[Contender], config: EvaluateConfig, must: bool
) -> tuple[list[tuple[Task, TaskSamples]], list[str]]:
    """Return the samples of each task, and why others are left out; an error where a task that `must` be asked has none."""
    known = {frozenset(spec.name for spec in contender.specs) for contender in compared if contender.parameters is not None}
    if unknown := sorted(set(config.sensors) - frozenset().union(*known)):
        raise InputError(f"no model knows sensor '{unknown[0]}' (models: {', '.join(sorted(frozenset().union(*known)))})")
    asked, left_out = [], []
    for task in tasks:
        wanted = [
            sensors & set(config.sensors or sensors) for sensors in sorted(known, key=lambda found: (-len(found), sorted(found)))
        ]
        found = {samples.name: samples for sensors in wanted for samples in task.samples(frozenset(sensors))}
        try:
            if not found:
                raise InputError(
                    f"no tile of {sorted(frozenset().union(*wanted))} has label '{task.name}' that a model knows "
                    f"(models: {sorted(frozenset().union(*known))})"
                )
            few = {name: reason for name, samples in found.items() if (reason := too_few(task, samples))}
            if len(few) == len(found):
                raise InputError(next(iter(few.values())))
            enough = [samples for name, samples in found.items() if name not in few]
            for samples in enough:
                _check_units(task, samples, compared)
        except InputError as error:
            if must:
                raise
            left_out.append(f"{task.name} is left out: {error}")
        else:
            asked += [(task, samples) for samples in enough]
            left_out += [f"{task.name} of {name} is left out: {reason}" for name, reason in few.items()]
    if not asked:
        raise InputError(f"no task is left: {'; '.join(left_out)}")
    return asked, left_out


def _check_units(task: Task, samples: TaskSamples, compared: Sequence[Contender]) -> None:
    """Let each trained encoder check bands, unit, pixel size and values of a few tiles before anything is computed."""
    batch = TileReader(task.archive, samples).batch(samples.part("train")[:LOOKED_AT])
    for contender in compared:
        if contender.parameters is not None and contender.takes(samples.sensors):
            contender.encoder(0).encode(batch)


def works_of(
    task: Task,
    samples: TaskSamples,
    compared: Sequence[Contender],
    config: EvaluateConfig,
    digests: dict[str, str],
    run_url: str,
    perturbations: Sequence[Perturbation | None] = (None,),
) -> list[Work]:
    """Return the cells of one task's samples, and write down which labels each share of them is."""
    name = f"{task.name}-{hashlib.sha256(f'{task.archive.url} {samples.name}'.encode()).hexdigest()[:8]}"
    lists = [write_list(run_url, name, samples, config.label_fractions, seed) for seed in range(config.seeds)]
    works = []
    for protocol, contender in pairs_of(task.kind, config.protocols, [c for c in compared if c.takes(samples.sensors)]):
        for fraction in config.label_fractions:
            for seed in range(config.seeds):
                is_curve = (protocol, fraction, seed) == (
                    protocols_of(task.kind, config.protocols)[0],
                    max(config.label_fractions),
                    0,
                )
                for disturbed in perturbations if is_curve else (None,):
                    how = (disturbed.name, disturbed.strength) if disturbed else ("", 0.0)
                    about = (task.name, task.archive.url, samples.name, contender.title, protocol, fraction, seed)
                    seen = disturbed.samples(samples) if disturbed else samples
                    digest = digests[task.archive.url]
                    works.append(Work(Cell(*about, *how), task, seen, contender, lists[seed], digest, config.training, disturbed))
    return works


def answer_all(works: Sequence[Work], run: Run) -> dict[str, str]:
    """Answer the cells that have no row yet, or one that says an error; return what failed and why."""
    done = {key for key, row in cells.read(run.url).items() if not row.error or row.error.startswith(REFUSED)}
    missing = [work for work in works if work.cell.key not in done]
    make_features(missing, run.url)
    # Samples and archives are large: one copy for all cells.
    shared: Any = ray.put(missing)
    remote = ray.remote(num_cpus=TASK_CPUS, max_retries=1)(_answer)
    tasks = {remote.remote(shared, number, run.url): work for number, work in enumerate(missing)}
    failures = {}
    for work, row in gather(tasks, "cells", keep_errors=True):
        if isinstance(row, RayError):
            row = failed(work, f"its process ended ({str(row).splitlines()[0]})", 0.0)
            cells.write(run.url, row, None)
        if row.error and not row.error.startswith(REFUSED):
            failures[str(work.cell)] = row.error
            run.event("cell_failed", cell=str(work.cell), reason=row.error)
    return failures


def _answer(works: Sequence[Work], number: int, run_url: str) -> cells.Row:
    return answered(works[number], run_url)


def make_features(works: Sequence[Work], run_url: str) -> None:
    """Make what features the cells need and the run folder does not hold, each once."""
    store, keys = FeatureStore(run_url), {}
    wanted: dict[tuple[str, str, str, int], list[np.ndarray]] = defaultdict(list)
    for work in works:
        for key, chosen in work.features():
            if (id(work.samples), key.name) in keys:
                continue
            keys[id(work.samples), key.name] = key
            for sensor in work.samples.sensors:
                rows, shards = work.samples.tiles.rows[sensor][chosen], work.samples.tiles.shard[chosen]
                for shard in np.unique(shards):
                    stacks = key.stacks(rows[shards == shard])
                    wanted[key.name, sensor, str(shard), stacks.shape[1]].append(stacks)
    by_name = {key.name: key for key in keys.values()}
    remote = ray.remote(num_cpus=TASK_CPUS)(FeatureStore.make)
    tasks = {
        remote.remote(store, by_name[name], sensor, shard, np.unique(np.concatenate(stacks), axis=0)): name
        for (name, sensor, shard, dates), stacks in wanted.items()
        if not store.has(by_name[name], sensor, shard, dates)
    }
    for name, error in gather(tasks, "features", keep_errors=True):
        if isinstance(error, ModelInputError) and by_name[name].perturbation is not None:
            store.refuse(by_name[name], str(getattr(error, "cause", error)))
        elif error is not None:
            raise error
