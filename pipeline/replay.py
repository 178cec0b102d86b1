"""Which samples a run sees that goes on with new scenes: all that show one of them, a share of the old ones, no withheld scene.

Models forget what they are no longer shown; a share of old samples keeps them from it (experience replay: Rolnick et al. 2019,
arXiv 1811.11682). Which old ones is drawn by what a sample is made of, so it is the same in every pass and wherever it is read.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.views import Samples, scattered

BITS = 11
"""Of 64 that are dropped: float64 holds the other 53."""


@dataclass(frozen=True)
class Replay:
    """Scenes by their ids. `keep` is the share of the samples without a new scene that are seen."""

    new: frozenset[str]
    withheld: frozenset[str] = frozenset()
    keep: float = 1.0
    seed: int = 0

    def of(self, num_new: int, num_old: int, share: float) -> "Replay":
        """Return the replay in which `share` of all samples are old ones, or as many of them as there are."""
        wanted = num_new * share / (1 - share)
        return replace(self, keep=min(1.0, wanted / num_old) if num_old else 1.0)

    def tiles(self, tiles: pd.DataFrame) -> pd.DataFrame:
        """Return the catalog rows of scenes that are not withheld."""
        return tiles[~tiles["scene"].isin(self.withheld)]

    def samples(self, samples: Samples, tiles: pd.DataFrame) -> Samples:
        """Return those of `samples`, made of `tiles`, that are seen."""
        return samples.take(self._are_new(samples, tiles) | (self._draws(samples) < self.keep))

    def _are_new(self, samples: Samples, tiles: pd.DataFrame) -> np.ndarray:
        """Return (N,) bool: one of a sample's tiles at least is of a new scene."""
        found, new = np.zeros(len(samples), bool), tiles[tiles["scene"].isin(self.new)]
        for name, rows in samples.rows.items():
            here = new[new["sensor"] == name]
            known = pd.MultiIndex.from_arrays([here["shard"].astype(str), here["row"].astype(np.int64)])
            for column in rows.T:
                found |= pd.MultiIndex.from_arrays([samples.shard.astype(str), column.astype(np.int64)]).isin(known)
        return found

    def _draws(self, samples: Samples) -> np.ndarray:
        """Return (N,) numbers in [0, 1) that hang on nothing but the seed and the sample's shard and tiles."""
        number = pd.util.hash_array(samples.shard.astype(str).astype(object)) + np.uint64(self.seed)
        for rows in samples.rows.values():
            for column in rows.T:
                number = scattered(number + column.astype(np.int64).astype(np.uint64))
        return (number >> np.uint64(BITS)) * 2.0 ** (BITS - 64)
