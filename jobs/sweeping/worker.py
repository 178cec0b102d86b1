"""One cell from beginning to end: an ordinary pretraining run, then what its model is worth.

Runs in a Ray task, in a process that is used again by the next cell. A cell that was killed goes on from its last checkpoint.
"""

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from cluster.batches import sensor_specs
from cluster.embedding import ImageStatistics, ModelFeatures, embed
from cluster.run import Run
from jobs.evaluation.contenders import num_dates
from jobs.evaluation.interval import intervals
from jobs.pretrain import pretrain
from jobs.sweeping.cell import Cell
from jobs.sweeping.change import change_quizzes
from jobs.sweeping.held_out import held_out, trained_objective
from jobs.sweeping.ledger import TRAINING, Ledger
from jobs.sweeping.quiz import Answers, Quiz, quizzes, to_bytes
from jobs.sweeping.settings import changed
from jobs.sweeping.sizes import Sizes, as_facts, sized
from models.encoder import Encoder
from pipeline import storage
from pipeline.archive import Archive, open_archive

STATISTICS = "image statistics"
UNTRAINED = "untrained"
"""After the name of a quiz, in a cell's answers: the same encoder as it was before training."""
HEALTH = ("effective_rank", "feature_std", "cosine_others", "cosine_turned_90", "projection_std", "high_frequency")
SPEED_STEPS = 6
"""Of which the first two are not timed."""


@dataclass(frozen=True)
class Asked:
    """What every cell of a sweep is asked. labels: () for all that a probe can answer; samples of each split, and held out.

    untrained: whether the same encoder is asked as it was before training, too.
    """

    labels: tuple[str, ...]
    probe_samples: int
    held_out_samples: int
    untrained: bool = True
    workers: str = "0"
    changes: str = ""
    sensors: tuple[str, ...] = ()


def run_cell(cell: Cell, sizes: Sizes, archive_url: str, run_url: str, teacher: str, asked: Asked) -> None:
    """Train and score `cell` and write it into the ledger. `teacher` is the key of the cell it learns from, if any."""
    ledger, archive = Ledger(run_url), open_archive(archive_url)
    before, started = _cpu_seconds(), time.monotonic()
    recipe = sized(cell.recipe_of(), sizes, asked.workers)
    if teacher:
        recipe = changed(recipe, [("teacher", ledger.path(teacher, TRAINING, "model"))])
    run = Run(ledger.path(cell.key, TRAINING), "pretrain")
    trained = pretrain(cell.recipe, recipe, archive_url, run.url)
    trained_cpu, records = _cpu_seconds() - before, _records(run)
    facts: dict[str, Any] = {"sizes": as_facts(sizes), "loss": {}, "train_loss": trained.get("loss"), "health": _health(records)}
    facts["counted_flops"] = _counted(records, sizes.batch)
    if asked.workers == "0":
        for name, settings in cell.exams or (("", ()),):
            exam = changed(recipe, settings)
            facts["loss"][name] = held_out(trained_objective(run, recipe, archive, exam), exam, archive, asked.held_out_samples)
    untrained = recipe.build(sensor_specs(archive), torch.Generator().manual_seed(cell.seed)).encoder.eval()
    dates = 1 if untrained.config.frames == "apart" else num_dates(asdict(recipe.train))
    answers = _answers(archive_url, asked, ModelFeatures(run.path("model")), untrained, dates)
    facts["probes"] = {name: _scored(found) for name, found in answers.items()}
    seconds = {"seconds": time.monotonic() - started, "training_cpu_seconds": trained_cpu, "cpu_seconds": _cpu_seconds() - before}
    ledger.finish(cell, facts | {name: round(value, 2) for name, value in seconds.items()}, answers)
    storage.remove(run.path("checkpoints"))


def score_statistics(archive_url: str, run_url: str, asked: Asked) -> None:
    """Ask what each band's mean, deviation and extremes are worth, which every encoder is to beat; write it into the ledger."""
    answers = {quiz.name: quiz.ask(ImageStatistics()) for quiz in _quizzes(archive_url, asked)}
    ledger = Ledger(run_url)
    storage.write_bytes(ledger.path(STATISTICS, "answers.npz"), to_bytes(answers))
    storage.write_json(ledger.path(STATISTICS, "summary.json"), {"probes": {name: _scored(a) for name, a in answers.items()}})


def seconds_per_step(cell: Cell, archive_url: str, run_url: str) -> float:
    """Return what a step of the cell's recipe takes on this worker: the median of a few, in a run that is thrown away."""
    url = Ledger(run_url).path("speed", cell.key)
    recipe = changed(cell.recipe_of(), [("train.num_steps", SPEED_STEPS), ("train.workers", "0"), ("train.health_every", 0)])
    storage.remove(url)
    pretrain(cell.recipe, recipe, archive_url, url)
    batch = recipe.train.lanes * recipe.train.batch_size
    found = sorted(batch / record["samples_per_second"] for record in _records(Run(url, "pretrain"))[2:])
    storage.remove(url)
    return found[len(found) // 2]


class _Encoder:
    """An encoder in memory as a maker of features."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def features(self, arrays: Any, lonlat_deg: Any) -> Any:
        return embed(self._encoder, arrays, lonlat_deg)


def _answers(archive_url: str, asked: Asked, model: ModelFeatures, untrained: Encoder, dates: int) -> dict[str, Answers]:
    trained, known = model.load(), {spec.name for spec in untrained.config.sensors}
    found = {}
    for quiz in _quizzes(archive_url, asked):
        if set(quiz.samples.sensors) <= known:
            found[quiz.name] = quiz.ask(_Encoder(trained), dates)
            if asked.untrained:
                found[f"{quiz.name}/{UNTRAINED}"] = quiz.ask(_Encoder(untrained), dates)
    return found


@lru_cache(maxsize=1)
def _quizzes(archive_url: str, asked: Asked) -> Sequence[Quiz]:
    return quizzes_of(open_archive(archive_url), asked)


def quizzes_of(archive: Archive, asked: Asked) -> Sequence[Quiz]:
    """Return all that encoders are asked; raise InputError for labels and changes that cannot be."""
    found = quizzes(archive, asked.labels, asked.probe_samples)
    if asked.changes and asked.probe_samples:
        found += change_quizzes(archive, asked.changes, asked.probe_samples)
    return [quiz for quiz in found if set(quiz.samples.sensors) <= set(asked.sensors or archive.sensors)]


def _scored(answers: Answers) -> dict[str, Any]:
    low, high = intervals(answers.outcome)[answers.metric]
    return {"metric": answers.metric, "score": answers.score, "low": low, "high": high}


def _records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(run.path("metrics.jsonl")).decode().splitlines()]


def _counted(records: Sequence[dict[str, Any]], batch: int) -> float:
    """Return the operations that the run itself counted; 0 where its blocks were compiled."""
    return sum(record.get("tflops_per_second", 0.0) * 1e12 * batch / record["samples_per_second"] for record in records)


def _health(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the last look at each sensor's measures, by '<measure>/<sensor>'."""
    found: dict[str, float] = {}
    for record in records:
        found |= {name: value for name, value in record.items() if name.partition("/")[0] in HEALTH and value is not None}
    return found


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
