"""Which training labels are seen when only a share of them is: drawn without replacement, each share inside the larger ones.

The list is written into the run, so that others can train on the same labels.
"""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jobs.evaluation.samples import TaskSamples
from pipeline import storage
from pipeline.errors import InputError

FOLDER = "labels"


def check_fractions(fractions: Sequence[float]) -> None:
    if not fractions or any(not 0 < fraction <= 1 for fraction in fractions):
        raise InputError(f"label_fractions are {tuple(fractions)}, expected at least one, each above 0 and at most 1")


def draw(strata: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return sorted numbers of round(fraction * n), at least one, of the n labels of each stratum (N,).

    The same seed gives a smaller share a part of what it gives a larger one.
    """
    rng, chosen = np.random.default_rng(seed), []
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata == stratum))
        chosen.append(members[: max(1, int(fraction * len(members) + 0.5))])
    return np.sort(np.concatenate(chosen))


def train_labels(samples: TaskSamples, fraction: float, seed: int) -> np.ndarray:
    """Return the numbers of the training samples whose labels are seen."""
    train = samples.part("train")
    return train[draw(samples.strata[train], fraction, seed)]


def write_list(run_url: str, name: str, samples: TaskSamples, fractions: Sequence[float], seed: int) -> str:
    """Write which labels a seed sees and return the file's path in the run: a row a label, `fraction` the least that has it."""
    least = np.full(len(samples), np.nan)
    for fraction in sorted(fractions, reverse=True):
        least[train_labels(samples, fraction, seed)] = fraction
    chosen = np.flatnonzero(~np.isnan(least))
    first = samples.sensors[0]
    table = pd.DataFrame(
        {
            "shard": samples.tiles.shard[chosen],
            "site": samples.tiles.site[chosen],
            "sensor": first,
            "row": samples.tiles.rows[first][chosen, 0],
            "fraction": least[chosen],
        }
    )
    path = f"{FOLDER}/{name}-{seed}.parquet"
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    storage.write_bytes(storage.join(run_url, path), buffer.getvalue())
    return path
