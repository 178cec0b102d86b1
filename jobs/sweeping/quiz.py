"""What every cell's encoder is asked: a label of the archive, by a linear probe, on the same few samples for all.

Cheap, so that every run can be asked; `terraloom evaluate` asks at length. Features are made in memory and not kept; the
answers to the test samples are, so that arms can be compared sample by sample.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from cluster.embedding import FeatureMaker
from jobs.evaluation.features import combine, stacked, where_known
from jobs.evaluation.metrics import NAMES, Outcome
from jobs.evaluation.plan import too_few
from jobs.evaluation.protocols._probe import Part, standardised
from jobs.evaluation.protocols.linear import probe
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.task import DENSE, OUTCOMES, LabelTask, label_task
from jobs.evaluation.tiles import TileReader
from pipeline.archive import Archive
from pipeline.errors import InputError

SPLITS = ("train", "val", "test")
FILE = "answers.npz"


@dataclass(frozen=True)
class Quiz:
    """One task's samples of one sensor, or of all where the label is of a site's dates together; `of_split` numbers those asked."""

    label: str
    archive: Archive
    samples: TaskSamples
    of_split: dict[str, np.ndarray]
    labels: np.ndarray
    kind: str
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.label}/{self.samples.name}"

    @cached_property
    def _reader(self) -> TileReader:
        return TileReader(self.archive, self.samples)  # keeps the tiles for the next encoder

    def outcome(self, split: str, predicted: np.ndarray) -> "Answers":
        chosen = self.of_split[split]
        about = {"classes": self.classes} if self.kind in ("class", "multilabel") else {}
        made: dict[str, Any] = {"place": self.samples.place[chosen], "labels": self.labels[chosen], "predicted": predicted, **about}
        return Answers(OUTCOMES[self.kind](**made))

    def ask(self, maker: FeatureMaker, num_dates: int = 1) -> "Answers":
        """Return the answers of a linear probe on what `maker` makes of the tiles, up to `num_dates` of a site together."""
        chosen = [self.of_split[split] for split in SPLITS]
        vectors = standardised(*(_vectors(maker, num_dates, self._reader, self.samples, part) for part in chosen))
        train, val, test = (Part(part, values, self.labels[part]) for part, values in zip(chosen, vectors))
        _, predict = probe(self.kind, train, val, lambda found: self.outcome("val", found).score)
        return self.outcome("test", predict(test.vectors))


@dataclass(frozen=True)
class Answers:
    """Answers to the test samples of a quiz."""

    outcome: Outcome

    @property
    def metric(self) -> str:
        return next(iter(self.outcome.scores()))

    @property
    def score(self) -> float:
        return next(iter(self.outcome.scores().values()))


def quizzes(archive: Archive, labels: Sequence[str], num_samples: int) -> list[Quiz]:
    """Return a quiz for each of `labels` (none: all that a probe can answer) and sensor.

    Of `num_samples` of each split at most; 0: no quiz.

    Raise InputError for a label that the archive lacks or has too few samples of; unnamed ones are then left out.
    """
    for name in labels:
        if name not in archive.labels:
            raise InputError(f"label '{name}' is not in '{archive.url}' (has {', '.join(sorted(archive.labels)) or 'none'})")
    found: list[Quiz] = []
    if not num_samples:
        return found
    for name in labels or sorted(archive.labels):
        task = label_task(archive, name)
        if task.kind == "segmentation":
            if labels:
                raise InputError(
                    f"label '{name}' is a map of one date, which a sweep's probe cannot answer; use terraloom evaluate"
                )
            continue
        for samples in task.samples(frozenset(archive.sensors)):
            if reason := too_few(task, samples):
                if labels:
                    raise InputError(reason)
                continue
            found.append(_quiz(task, samples, num_samples))
    return found


def _quiz(task: LabelTask, samples: TaskSamples, num_samples: int) -> Quiz:
    of_split = drawn(samples, num_samples)
    if task.kind in DENSE:  # a map of change: has anything changed at all?
        return Quiz(task.name, task.archive, samples, of_split, samples.strata.astype(float), "binary")
    return Quiz(task.name, task.archive, samples, of_split, samples.labels, task.kind, task.classes)


def drawn(samples: TaskSamples, num_samples: int) -> dict[str, np.ndarray]:
    """Return the numbers of at most `num_samples` of each split, always the same."""
    of_split = {}
    for split in SPLITS:
        chosen = samples.part(split)
        if len(chosen) > num_samples:
            chosen = np.sort(np.random.default_rng(0).choice(chosen, num_samples, replace=False))
        of_split[split] = chosen
    return of_split


def _vectors(maker: FeatureMaker, num_dates: int, reader: TileReader, samples: TaskSamples, chosen: np.ndarray) -> np.ndarray:
    """Return (N, D): what tiles are pooled to; of two dates both and their difference."""
    lonlat, found = samples.tiles.lonlat_deg[chosen], {}
    for name, arrays in reader.arrays(chosen).items():
        shape = arrays.is_present.shape
        seen = arrays if shape[1] <= num_dates else stacked(arrays, (arrays.is_present.size, 1))
        pooled = maker.features(seen, lonlat.repeat(len(seen.is_present) // len(lonlat), 0))
        found[name] = where_known(pooled, seen).reshape(*shape, -1)
    return combine(found)


def to_bytes(answers: dict[str, Answers]) -> bytes:
    """Return answers as .npz, to be read by `from_bytes`."""
    arrays: dict[str, Any] = {}
    for name, found in answers.items():
        arrays[f"{name}/kind"] = np.array(type(found.outcome).__name__)
        arrays |= {f"{name}/{field.name}": np.asarray(getattr(found.outcome, field.name)) for field in fields(found.outcome)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Answers]:
    kinds = {kind.__name__: kind for kind in OUTCOMES.values()}
    found: dict[str, dict[str, Any]] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for key in arrays.files:
            name, _, field = key.rpartition("/")
            found.setdefault(name, {})[field] = tuple(arrays[key].tolist()) if field in NAMES else arrays[key]
    return {name: Answers(kinds[str(of.pop("kind"))](**of)) for name, of in found.items()}
