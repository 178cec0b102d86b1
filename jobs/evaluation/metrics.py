"""What answers are worth, over a whole split: never a mean of batches.

An outcome holds, for each test sample, what the metrics need: answers and truths, or counts of pixels. Taking some of its
samples, with repetition, is another outcome, which is all that intervals need. Accuracies, F1 and IoU follow from counts;
average precision and errors are scikit-learn's. Definitions: docs/evaluation.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from sklearn.metrics import average_precision_score, r2_score

NAMES = ("classes", "metrics")
"""Fields of outcomes that do not have one entry a sample."""


@dataclass(frozen=True)
class Outcome(ABC):
    """Answers to N test samples: arrays of one entry a sample, but for NAMES. place (N,) names what belongs together."""

    place: np.ndarray

    def __len__(self) -> int:
        return len(self.place)

    def take(self, chosen: np.ndarray) -> Self:
        """Return these samples, as often as they are named."""
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name not in NAMES})

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Return each metric; NaN where the samples do not define it. The first is the one that tables show."""


@dataclass(frozen=True)
class Classified(Outcome):
    """One class a sample: labels (N,), predicted (N,)."""

    labels: np.ndarray
    predicted: np.ndarray
    classes: tuple[str, ...]

    def confusion(self) -> np.ndarray:
        """Return (K, K): how often the class of the row was taken for the class of the column."""
        size = len(self.classes)
        return np.bincount(self.labels.astype(int) * size + self.predicted.astype(int), minlength=size**2).reshape(size, size)

    def scores(self) -> dict[str, float]:
        counts = self.confusion()
        f1 = f1_of(counts)
        found = {"accuracy": accuracy_of(counts), "macro F1": _mean(f1), "balanced accuracy": _mean(recall_of(counts))}
        return found | {f"F1 {name}": float(value) for name, value in zip(self.classes, f1)}


@dataclass(frozen=True)
class Ranked(Outcome):
    """Yes or no: labels (N,) 0 or 1, predicted (N,) the larger the likelier."""

    labels: np.ndarray
    predicted: np.ndarray

    def scores(self) -> dict[str, float]:
        return {"average precision": average_precision(self.labels, self.predicted)}


@dataclass(frozen=True)
class MultiRanked(Outcome):
    """Several classes a sample: labels (N, K) bool, predicted (N, K) the larger the likelier.

    micro mAP pools all pairs of sample and class; macro mAP is the mean over the classes that the samples have.
    """

    labels: np.ndarray
    predicted: np.ndarray
    classes: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        each = [average_precision(self.labels[:, k], self.predicted[:, k]) for k in range(len(self.classes))]
        micro = average_precision(self.labels.ravel(), self.predicted.ravel())
        return {"micro mAP": micro, "macro mAP": _mean(each)} | {f"AP {n}": ap for n, ap in zip(self.classes, each)}


@dataclass(frozen=True)
class Regressed(Outcome):
    """A number a sample: labels (N,), predicted (N,)."""

    labels: np.ndarray
    predicted: np.ndarray

    def scores(self) -> dict[str, float]:
        error = self.predicted - self.labels
        is_defined = len(self) > 1 and np.ptp(self.labels) > 0
        r2 = float(r2_score(self.labels, self.predicted)) if is_defined else float("nan")
        return {"R2": r2, "MAE": float(np.abs(error).mean()), "RMSE": float(np.sqrt((error**2).mean()))}


@dataclass(frozen=True)
class Segmented(Outcome):
    """A class for every labelled pixel, as counts (N, K, K): pixels of the class of the row taken for that of the column.

    A class that is neither there nor predicted has no score and is left out of means.
    """

    counts: np.ndarray
    classes: tuple[str, ...]

    def confusion(self) -> np.ndarray:
        return self.counts.sum(0)

    def scores(self) -> dict[str, float]:
        counts = self.confusion()
        iou, f1 = iou_of(counts), f1_of(counts)
        found = {"mIoU": _mean(iou), "mF1": _mean(f1), "overall accuracy": accuracy_of(counts)}
        found |= {f"IoU {name}": float(value) for name, value in zip(self.classes, iou)}
        return found | {f"F1 {name}": float(value) for name, value in zip(self.classes, f1)}


@dataclass(frozen=True)
class Changed(Outcome):
    """Segmented into two classes of which the second is what is looked for: counts (N, 2, 2).

    F1 is that of the pixels of all samples together; the mean over places leaves out those without any such pixel.
    """

    counts: np.ndarray
    classes: tuple[str, ...]

    def confusion(self) -> np.ndarray:
        return self.counts.sum(0)

    def scores(self) -> dict[str, float]:
        counts = self.confusion()
        names, inverse = np.unique(self.place, return_inverse=True)
        by_place = np.zeros((len(names), 2, 2))
        np.add.at(by_place, inverse, self.counts)
        each = [f1_of(part)[1] for part in by_place if part[1].sum()]
        (_, false), (missed, found) = counts
        return {
            "F1": float(f1_of(counts)[1]),
            "F1, mean of places": _mean(each),
            "precision": _ratio(found, found + false),
            "recall": _ratio(found, found + missed),
            "IoU": float(iou_of(counts)[1]),
            "overall accuracy": accuracy_of(counts),
        }


def joined(parts: Sequence[Outcome]) -> Outcome:
    """Return the outcomes of several batches of samples as one."""
    names = [f.name for f in fields(parts[0]) if f.name not in NAMES]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def counts_of(labels: np.ndarray, predicted: np.ndarray, is_labelled: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (N, K, K) counts of the labelled pixels of maps (N, Y, X)."""
    pair = labels.astype(np.int64) * num_classes + predicted
    sample = np.arange(len(labels))[:, None, None] * num_classes**2
    counts = np.bincount((sample + pair)[is_labelled], minlength=len(labels) * num_classes**2)
    return counts.reshape(len(labels), num_classes, num_classes)


def average_precision(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(average_precision_score(labels, predicted)) if labels.any() else float("nan")


def iou_of(counts: np.ndarray) -> np.ndarray:
    """Return (K,): pixels of both over pixels of either, NaN where there is neither."""
    both = np.diag(counts)
    return _ratios(both, counts.sum(0) + counts.sum(1) - both)


def f1_of(counts: np.ndarray) -> np.ndarray:
    return _ratios(2 * np.diag(counts), counts.sum(0) + counts.sum(1))


def recall_of(counts: np.ndarray) -> np.ndarray:
    return _ratios(np.diag(counts), counts.sum(1))


def accuracy_of(counts: np.ndarray) -> float:
    return _ratio(np.trace(counts), counts.sum())


def _ratios(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)


def _ratio(over: float, under: float) -> float:
    return float(over / under) if under else float("nan")


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")
