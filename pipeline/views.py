"""Which tiles of a site make one sample, and which sensor sets an archive offers.

A view is a small configuration with one method, `samples`: a pure function of catalog rows. Sites do not depend on each
other, so the samples of a shard can be had from its own rows alone. What is drawn anew at every step (crops, noise,
symmetries) is `augment`'s.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import numpy as np
import pandas as pd

from pipeline.dates import SECONDS_PER_DAY, Dates, dates_of, in_order, partners
from pipeline.errors import InputError
from pipeline.sensors import Sensor

SensorSet = tuple[str, ...]
Takes = Literal["one", "two", "all"]
"""How many of a site's sensors a view takes by default."""
DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class Samples:
    """N samples of T dates: `shard` (N,) and `site` (N,) names, `lonlat_deg` (N, 2), NaN without a CRS.

    rows       sensor -> (N, T) row of the tile in its shard, -1 where there is none
    time_days  sensor -> (N, T) days since 1970-01-01, NaN where there is no tile or its time is unknown
    """

    shard: np.ndarray
    site: np.ndarray
    lonlat_deg: np.ndarray
    rows: dict[str, np.ndarray]
    time_days: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.shard)

    def take(self, chosen: np.ndarray) -> "Samples":
        """Return the samples that `chosen` names, by number or as a mask."""
        rows, days = ({name: values[chosen] for name, values in of.items()} for of in (self.rows, self.time_days))
        return Samples(self.shard[chosen], self.site[chosen], self.lonlat_deg[chosen], rows, days)


@dataclass(frozen=True)
class Single:
    """Every tile by itself; of several sensors, as `CrossSensor`."""

    takes: ClassVar[Takes] = "one"
    num_dates: ClassVar[int] = 1

    def samples(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        return _nearest_to(tiles, sensor_set, self.num_dates, _each)


@dataclass(frozen=True)
class CrossSensor:
    """Every tile of the sensor with fewest dates at a site, with the tile of each other sensor nearest in time.

    So a pass shows scarce tiles once. Nearest in order where a time of the site is unknown. Sites that lack a sensor
    give nothing.
    """

    takes: ClassVar[Takes] = "two"
    num_dates: ClassVar[int] = 1

    def samples(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        return _nearest_to(tiles, sensor_set, self.num_dates, _each)


@dataclass(frozen=True)
class TemporalPair:
    """Two dates of a site at least `min_gap_days` apart; 0: any two, also where times are unknown.

    Every date of the sensor with fewest (but two) is once the first of a pair, its partners being taken in turn; other
    sensors give the tiles nearest in time. The earlier date comes first.
    """

    min_gap_days: float = 1.0
    takes: ClassVar[Takes] = "one"
    num_dates: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.min_gap_days < 0:
            raise InputError(f"min_gap_days of a pair is {self.min_gap_days:g}, expected 0 or more")

    def samples(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        return _nearest_to(tiles, sensor_set, self.num_dates, self._pairs)

    def _pairs(self, anchors: Dates) -> np.ndarray:
        gap = max(1, round(self.min_gap_days * SECONDS_PER_DAY))
        before = anchors.searchsorted(anchors.site, anchors.when - gap, "right")
        after = anchors.searchsorted(anchors.site, anchors.when + gap, "left")
        may_pair = anchors.is_timed | (self.min_gap_days == 0)
        return np.sort(partners(anchors, may_pair, (anchors.first, before), (after, anchors.last)), 1)


@dataclass(frozen=True)
class SeasonPair:
    """Two dates of a site at least `min_gap_days` of the year apart, whatever the years (Manas et al., 2021, arXiv 2103.16607).

    Dates without a time have no season and are left out; else as `TemporalPair`.
    """

    min_gap_days: float = 60.0
    takes: ClassVar[Takes] = "one"
    num_dates: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.min_gap_days < DAYS_PER_YEAR / 2:
            raise InputError(f"min_gap_days of seasons is {self.min_gap_days:g}, expected more than 0 and less than half a year")

    def samples(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        return _nearest_to(tiles, sensor_set, self.num_dates, self._pairs)

    def _pairs(self, anchors: Dates) -> np.ndarray:
        year, gap = round(DAYS_PER_YEAR * SECONDS_PER_DAY), round(self.min_gap_days * SECONDS_PER_DAY)
        season = anchors.when % year
        order = np.lexsort((season, anchors.site))
        by_season = replace(anchors.take(order), when=season[order])

        def between(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            left = by_season.searchsorted(by_season.site, by_season.when + start, "left")
            return left, by_season.searchsorted(by_season.site, by_season.when + stop, "right")

        pairs = partners(by_season, by_season.is_timed, between(gap - year, -gap), between(gap, year - gap))
        return np.sort(order[pairs], 1)


@dataclass(frozen=True)
class DateTriple:
    """Three dates of a site, drawn with replacement, so that some coincide (Manas et al., 2021, arXiv 2103.16607).

    Every date of the sensor with fewest (but three) is once the first; which the others are hangs on the tile, and is the same
    in every pass. Other sensors give the tiles nearest in time.
    """

    takes: ClassVar[Takes] = "one"
    num_dates: ClassVar[int] = 3

    def samples(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        return _nearest_to(tiles, sensor_set, self.num_dates, self._triples)

    def _triples(self, anchors: Dates) -> np.ndarray:
        drawn = scattered(anchors.row[:, None] * 2 + np.arange(2)) % (anchors.last - anchors.first)[:, None].astype(np.uint64)
        return np.column_stack([np.arange(len(anchors.site)), anchors.first[:, None] + drawn.astype(int)])


@dataclass(frozen=True)
class DateStack:
    """Up to `num_dates` dates of a site, each sensor's own; absent ones are masked.

    A site with more dates gives several samples, each with dates spread over the whole time. One of the sensors is enough.
    """

    num_dates: int = 4
    takes: ClassVar[Takes] = "all"

    def __post_init__(self) -> None:
        if self.num_dates < 1:
            raise InputError(f"num_dates of a stack is {self.num_dates}, expected at least 1")

    def samples(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        sites, dates = dates_of(tiles, sensor_set)
        copies = -(-_counts(len(sites), dates.values()).max(0) // self.num_dates)
        begin = np.cumsum(copies) - copies
        found = {}
        for name, part in dates.items():
            place = np.arange(len(part.site)) - part.first
            index = np.full((int(copies.sum()), self.num_dates), -1)
            index[begin[part.site] + place % copies[part.site], place // copies[part.site]] = np.arange(len(part.site))
            found[name] = index
        return _gather(sites, np.repeat(np.arange(len(sites)), copies), dates, found)


View = Single | CrossSensor | TemporalPair | SeasonPair | DateTriple | DateStack


def _counts(num_sites: int, dates: Iterable[Dates]) -> np.ndarray:
    """Return the number of tiles, (sensor, site)."""
    return np.stack([np.bincount(part.site, minlength=num_sites) for part in dates])


def _each(anchors: Dates) -> np.ndarray:
    return np.arange(len(anchors.site))[:, None]


def scattered(number: np.ndarray) -> np.ndarray:
    """Return for each whole number one that looks drawn, uint64 (splitmix64: Steele et al., OOPSLA 2014)."""
    mixed = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _nearest_to(tiles: pd.DataFrame, sensor_set: SensorSet, num_dates: int, choose: Callable[[Dates], np.ndarray]) -> Samples:
    """Return samples of dates that `choose` finds among those of the sensor with fewest (but `num_dates`) at each site.

    `choose` returns places (N, num_dates); the other sensors give the tiles nearest to these dates.
    """
    sites, dates = dates_of(tiles, sensor_set)
    counts = _counts(len(sites), dates.values())
    is_enough = counts >= num_dates
    fewest = np.where(is_enough, counts, np.iinfo(counts.dtype).max).argmin(0)
    anchor = np.where(is_enough.any(0) & (counts > 0).all(0), fewest, -1)
    owned = [part.take(np.flatnonzero(anchor[part.site] == number)) for number, part in enumerate(dates.values())]
    anchors = in_order(Dates(*(np.concatenate([getattr(part, field.name) for part in owned]) for field in fields(Dates))))
    chosen = choose(anchors)
    site, found = anchors.site[chosen[:, 0]], {}
    for number, (name, part) in enumerate(dates.items()):
        places = np.stack([part.nearest(site, anchors.when[chosen[:, t]]) for t in range(num_dates)], 1)
        # Two tiles of one time are two tiles: an anchor stands for itself.
        own = anchor[site] == number
        places[own] = (np.searchsorted(part.site, site)[:, None] + chosen - anchors.first[chosen])[own]
        found[name] = places
    return _gather(sites, site, dates, found)


def _gather(sites: pd.DataFrame, site: np.ndarray, dates: dict[str, Dates], places: dict[str, np.ndarray]) -> Samples:
    """Return the samples at `site` whose tiles stand at `places` of each sensor, -1 for none."""
    rows, days = {}, {}
    for name, where in places.items():
        part = dates[name]
        rows[name] = np.where(where < 0, -1, np.append(part.row, -1)[where]).astype(np.int32)
        days[name] = np.where(where < 0, np.nan, np.append(part.days, np.nan)[where])
    return Samples(
        shard=sites["shard"].to_numpy()[site],
        site=sites["site"].to_numpy()[site],
        lonlat_deg=sites[["lon_deg", "lat_deg"]].to_numpy(np.float64)[site],
        rows=rows,
        time_days=days,
    )


def presence(tiles: pd.DataFrame) -> Counter[tuple[SensorSet, str]]:
    """Return how many sites have which sensors: (sensors, '') -> sites, (sensors, sensor) -> its tiles there. Shards add up."""
    counts = tiles.groupby(["shard", "site", "sensor"], observed=True).size().unstack(fill_value=0)
    names, found = list(counts.columns), Counter[tuple[SensorSet, str]]()
    patterns, which = np.unique(counts.to_numpy() > 0, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        here = counts.to_numpy()[which == number]
        present = tuple(name for name, is_present in zip(names, pattern) if is_present)
        found[present, ""] += len(here)
        found.update({(present, name): int(total) for name, total in zip(names, here.sum(0)) if total})
    return found


def sensor_sets(found: Counter[tuple[SensorSet, str]], sensors: dict[str, Sensor], view: View) -> list[SensorSet]:
    """Return the default sensor sets of a view: each sensor alone, all together, or one paired with each other one.

    The one that all others of a site are paired with measures reflectance, if any does, and has most tiles there.
    """
    known = sorted({name for _, name in found if name})
    if view.takes != "two":
        return [(name,) for name in known] if view.takes == "one" else [tuple(known)]
    sites: Counter[SensorSet] = Counter()
    for names in (names for names, name in found if not name):
        hub = max(names, key=lambda n: (sensors[n].quantity.endswith("reflectance"), found[names, n], n))
        for name in [name for name in names if name != hub] or [hub]:
            sites[(hub,) if name == hub else (hub, name)] += found[names, ""]
    # A pair at a few sites only, left by gaps at a swath's edge, would hardly fill a batch.
    return sorted(s for s, count in sites.items() if count >= min(16, max(sites.values())))
