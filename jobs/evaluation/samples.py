"""The samples of a task: which tiles each is made of, what is known of it, and to which split and place it belongs."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from pipeline.dates import SECONDS_PER_DAY, seconds_of
from pipeline.views import Samples


@dataclass(frozen=True)
class TaskSamples:
    """N samples. Their tiles lie in one shard each; `tiles.rows[sensor]` (N, T) are all their dates in order.

    split   (N,) 'train', 'val' or 'test'
    place   (N,) the chip, city or shard that a sample is cut from: neighbours, that intervals resample together
    labels  what is known of each: (N,) class, 0 or 1, or fraction; (N, K) bool, class by class; (N, K) pixels of each class
    strata  (N,) what a share of the labels is drawn in proportion to
    """

    tiles: Samples
    split: np.ndarray
    place: np.ndarray
    labels: np.ndarray
    strata: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    @property
    def sensors(self) -> tuple[str, ...]:
        return tuple(self.tiles.rows)

    @property
    def name(self) -> str:
        """What tables call these sensors."""
        return " + ".join(self.sensors)

    def part(self, split: str) -> np.ndarray:
        """Return the numbers of the samples of a split."""
        return np.flatnonzero(self.split == split)

    def of_places(self, is_kept: np.ndarray) -> "TaskSamples":
        """Return the samples where `is_kept` (N,) is True."""
        fields = {name: getattr(self, name)[is_kept] for name in ("split", "place", "labels", "strata")}
        return replace(self, tiles=self.tiles.take(is_kept), **fields)


def samples_of(groups: dict[str, list[pd.DataFrame]], labels: np.ndarray, strata: np.ndarray) -> TaskSamples:
    """Return samples made of catalog rows: sensor -> a table (N rows, one a sample) for each date."""
    firsts = next(iter(groups.values()))[0]
    days = {n: np.stack([seconds_of(d["time"]) / SECONDS_PER_DAY for d in dates], 1) for n, dates in groups.items()}
    tiles = Samples(
        firsts["shard"].to_numpy(str),
        firsts["site"].to_numpy(str),
        firsts[["lon_deg", "lat_deg"]].to_numpy(np.float64),
        {name: np.stack([date["row"].to_numpy() for date in dates], 1) for name, dates in groups.items()},
        days,
    )
    place = np.array([place_of(site, shard) for site, shard in zip(tiles.site, tiles.shard)])
    return TaskSamples(tiles, firsts["split"].to_numpy(str), place, labels, strata)


def place_of(site: str, shard: str) -> str:
    """Return what a site is cut from: 'oscd/paris' of the chip's window 'oscd/paris/r0c1', else the shard of a scene's site."""
    chip, _, window = site.rpartition("/")
    return chip if chip and window.startswith("r") else shard
