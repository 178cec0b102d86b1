"""What tasks share whose target is an image: examples for models to learn from, and what answers are worth.

An answer is images (N, C, Y, X) in the target sensor's unit. What a sample needs besides its input tiles stands in
`TaskSamples.labels` (N, 4), in the columns TARGET to SYMMETRY; -1: none.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd

from jobs.evaluation.metrics import Outcome
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.samples import TaskSamples, samples_of
from pipeline.augment import SensorArrays, dihedral, turn

TARGET, OTHER, PATTERN, SYMMETRY = range(4)
"""Row of the true tile; of another clear date of the site; number of the clouds that are laid over it; how they are turned."""
COLUMNS = ["target", "other", "pattern", "symmetry"]
CLOUD_REMOVAL, SHARPENING = KINDS = ("cloud removal", "pan-sharpening")
LOWER_IS_BETTER = ("MAE", "RMSE", "SAM", "ERGAS", "D_lambda", "D_s")


@dataclass(frozen=True)
class Restored(Outcome):
    """What each of N images is worth: values (N, M), one column for each of `metrics`; a score is the mean over images."""

    values: np.ndarray
    metrics: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        is_known = ~np.isnan(self.values)
        total, count = np.where(is_known, self.values, 0).sum(0), is_known.sum(0)
        return {name: float(t / n) if n else float("nan") for name, t, n in zip(self.metrics, total, count)}


def restored(place: np.ndarray, found: list[dict[str, float]]) -> Restored:
    """Return the outcome of images whose metrics are `found`; the first metric first."""
    return Restored(place, np.array([list(image.values()) for image in found]), tuple(found[0]))


@dataclass(frozen=True)
class Example:
    """N samples. `inputs`: what the encoder sees; `guess` (N, C, Y, X): what is to be mended, known where `is_known` (N, Y, X).

    truth (N, C, Y, X) where `is_valid` (N, Y, X); all in the target sensor's unit.
    """

    inputs: dict[str, SensorArrays]
    guess: np.ndarray
    is_known: np.ndarray
    truth: np.ndarray
    is_valid: np.ndarray

    def turned(self, symmetries: np.ndarray) -> "Example":
        """Return each sample under its symmetry of the square."""
        names = ("guess", "is_known", "truth", "is_valid")
        images = {n: np.stack([dihedral(i, int(s)) for i, s in zip(getattr(self, n), symmetries)]) for n in names}
        return Example({name: turn(arrays, symmetries) for name, arrays in self.inputs.items()}, **images)


class Reader(Protocol):
    """Reads the samples of one task; keeps tiles that it has read as far as memory goes."""

    def example(self, chosen: np.ndarray) -> Example: ...


def disturbed(arrays: dict[str, SensorArrays], perturbation: Perturbation | None, chosen: np.ndarray) -> dict[str, SensorArrays]:
    """Return tiles under a perturbation; the same samples always in the same way."""
    if perturbation is None:
        return arrays
    return {name: perturbation.arrays(found, np.random.default_rng(chosen.tolist())) for name, found in arrays.items()}


def restoration_samples(tables: dict[str, pd.DataFrame]) -> TaskSamples:
    """Return samples of one date: sensor -> catalog rows, one a sample; the first sensor's table has the columns of `labels`."""
    first = next(iter(tables.values()))
    return samples_of({name: [table] for name, table in tables.items()}, first[COLUMNS].to_numpy(np.int64), np.zeros(len(first)))


def with_rows(samples: TaskSamples, sensor: str, rows: np.ndarray) -> TaskSamples:
    """Return the samples with other tiles (N,) of one sensor, in the same shards, and without the other sensors."""
    unknown = np.full((len(samples), 1), np.nan)
    return replace(samples, tiles=replace(samples.tiles, rows={sensor: rows[:, None]}, time_days={sensor: unknown}))
