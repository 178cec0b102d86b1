"""The dates of many sites at once: tiles of one sensor sorted by site and time, and searches among them without a loop."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

EPOCH = pd.Timestamp(0, tz="UTC")
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Dates:
    """Tiles of one sensor in the order of (site, when), each an array (N,).

    site      number of the site
    when      seconds since 1970-01-01; where a time of the site is unknown, order
    row       of the tile in its shard
    days      since 1970-01-01, NaN where unknown
    is_timed  whether all times of the site are known
    """

    site: np.ndarray
    when: np.ndarray
    row: np.ndarray
    days: np.ndarray
    is_timed: np.ndarray

    @cached_property
    def first(self) -> np.ndarray:
        """For each tile the place of the first of its site."""
        return np.searchsorted(self.site, self.site, "left")

    @cached_property
    def last(self) -> np.ndarray:
        """For each tile one past the place of the last of its site."""
        return np.searchsorted(self.site, self.site, "right")

    @cached_property
    def _keys(self) -> tuple[np.ndarray, int, int]:
        low, span = int(self.when.min()) - 1, int(self.when.max() - self.when.min()) + 3
        return self.site * span + (self.when - low), low, span

    def take(self, places: np.ndarray) -> "Dates":
        return Dates(*(getattr(self, field.name)[places] for field in fields(self)))

    def searchsorted(self, site: np.ndarray, when: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
        """Return where tiles of `site` at `when` would stand; outside the site's dates, at its first or one past its last."""
        if not len(self.when):
            return np.zeros(len(site), int)
        keys, low, span = self._keys
        return np.searchsorted(keys, site * span + np.clip(when - low, 0, span - 1), side)

    def nearest(self, site: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Return the place of the tile of `site` (which has one) nearest to `when`, the earlier of two."""
        after = self.searchsorted(site, when, "left")
        before = np.maximum(after - 1, np.searchsorted(self.site, site, "left"))
        after = np.minimum(after, np.searchsorted(self.site, site, "right") - 1)
        return np.where(np.abs(self.when[after] - when) < np.abs(self.when[before] - when), after, before)


def dates_of(tiles: pd.DataFrame, sensor_set: tuple[str, ...]) -> tuple[pd.DataFrame, dict[str, Dates]]:
    """Return the sites (shard, site, lon_deg, lat_deg), in that order, and the dates of each sensor."""
    chosen = tiles[tiles["sensor"].isin(sensor_set)]
    site = chosen.groupby(["shard", "site"], sort=True, observed=True).ngroup().to_numpy()
    first = np.unique(site, return_index=True)[1]
    sites = chosen[["shard", "site", "lon_deg", "lat_deg"]].iloc[first]
    seconds = seconds_of(chosen["time"])
    is_timed = np.bincount(site, weights=np.isnan(seconds), minlength=len(sites)) == 0
    order, row = chosen["order"].to_numpy(np.int64), chosen["row"].to_numpy(np.int64)
    when = np.where(is_timed[site], np.nan_to_num(seconds), order).astype(np.int64)
    whole = Dates(site, when, row, seconds / SECONDS_PER_DAY, is_timed[site])
    sensor = chosen["sensor"].to_numpy()
    return sites, {name: in_order(whole.take(np.flatnonzero(sensor == name))) for name in sensor_set}


def seconds_of(times: pd.Series) -> np.ndarray:
    """Return seconds since 1970-01-01, float64, NaN where unknown."""
    return ((pd.to_datetime(times, utc=True) - EPOCH) / pd.Timedelta(seconds=1)).to_numpy(np.float64)


def in_order(dates: Dates) -> Dates:
    return dates.take(np.lexsort((dates.row, dates.when, dates.site)))


Range = tuple[np.ndarray, np.ndarray]
"""For each tile the first place of a range of others, and one past its last; empty where that is not later."""


def partners(dates: Dates, may_pair: np.ndarray, one: Range, other: Range) -> np.ndarray:
    """Return pairs (N, 2) of places: each that may pair with those of its two ranges, each in its turn."""
    size, other_size = (np.maximum(stop - start, 0) for start, stop in (one, other))
    place = np.flatnonzero(may_pair & (size + other_size > 0))
    turn = (place - dates.first[place]) % (size + other_size)[place]
    partner = np.where(turn < size[place], one[0][place] + turn, other[0][place] + turn - size[place])
    return np.stack([place, partner], 1)
