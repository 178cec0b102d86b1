"""Views against the same rules written naively, one site at a time."""

from collections import Counter
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from pipeline.archive import open_archive
from pipeline.errors import InputError
from pipeline.sensors import load_sensor
from pipeline.views import (
    DAYS_PER_YEAR,
    CrossSensor,
    DateStack,
    DateTriple,
    Samples,
    SeasonPair,
    Single,
    TemporalPair,
    View,
    presence,
    sensor_sets,
)

SENSORS = ("sentinel2_l2a", "sentinel1_grd", "dsm")


def entry(shard: str, site: str, sensor: str, row: int, order: int, time: datetime | None) -> dict:
    lon = float(len(site) + int(site[1:]))
    return {
        "shard": shard,
        "site": site,
        "sensor": sensor,
        "row": row,
        "order": order,
        "time": time,
        "lon_deg": lon,
        "lat_deg": 1.0,
    }


def made_up(num_sites: int = 60, seed: int = 0, unknown: float = 0.1) -> pd.DataFrame:
    """Sites with 0 to 9 dates of each sensor in any order, over four years; at some sites a time is unknown."""
    rng, rows, entries = np.random.default_rng(seed), Counter[tuple[str, str]](), []
    for number in range(num_sites):
        shard, site, lost = f"s_{number % 5}", f"x{number}", rng.random() < unknown
        for sensor in SENSORS:
            days = np.sort(rng.integers(0, 4 * 365, rng.integers(0, 10)))
            for order, day in enumerate(days):
                time = (
                    None if lost and not order else pd.Timestamp("2018-03-01", tz="UTC") + pd.Timedelta(days=int(day), hours=order)
                )
                entries.append(entry(shard, site, sensor, rows[shard, sensor], order, time))
                rows[shard, sensor] += 1
    table = pd.DataFrame(entries)
    table["time"] = pd.to_datetime(table["time"], utc=True)
    return table.sample(frac=1, random_state=seed, ignore_index=True)


def by_site(tiles: pd.DataFrame, sensor_set: tuple[str, ...]) -> dict[tuple[str, str], dict[str, pd.DataFrame]]:
    """(shard, site) -> sensor -> its tiles with `when` in seconds, or in order where a time of the site is unknown."""
    found = {}
    for key, group in tiles[tiles["sensor"].isin(sensor_set)].groupby(["shard", "site"]):
        timed = group["time"].notna().all()
        when = [t.timestamp() for t in group["time"]] if timed else group["order"]
        group = group.assign(when=np.array(when, float), timed=timed).sort_values(["when", "row"])
        found[key] = {name: group[group["sensor"] == name] for name in sensor_set}
    return found


def anchor_of(parts: dict[str, pd.DataFrame], num_dates: int) -> str | None:
    enough = [name for name in parts if len(parts[name]) >= num_dates]
    return min(enough, key=lambda n: len(parts[n])) if enough and all(map(len, parts.values())) else None


def nearest(part: pd.DataFrame, when: float) -> int:
    return int(part["row"].iloc[int((part["when"] - when).abs().to_numpy().argmin())])


def grouped(samples: Samples) -> dict[tuple[str, str], list[dict[str, tuple[int, ...]]]]:
    found: dict[tuple[str, str], list[dict[str, tuple[int, ...]]]] = {}
    for n in range(len(samples)):
        sample = {name: tuple(rows[n].tolist()) for name, rows in samples.rows.items()}
        found.setdefault((samples.shard[n], samples.site[n]), []).append(sample)
    return found


@pytest.mark.parametrize("sensor_set", [SENSORS[:1], SENSORS[:2], SENSORS])
@pytest.mark.parametrize("view", [Single(), CrossSensor()])
def test_each_date_meets_the_nearest_of_the_others(view: View, sensor_set: tuple[str, ...]) -> None:
    tiles = made_up()
    expected = {}
    for key, parts in by_site(tiles, sensor_set).items():
        if anchor := anchor_of(parts, 1):
            expected[key] = [
                {name: (tile.row if name == anchor else nearest(part, tile.when),) for name, part in parts.items()}
                for tile in parts[anchor].itertuples()
            ]
    assert len(expected) > 20
    assert grouped(view.samples(tiles, sensor_set)) == expected


def apart_in_season(a: float, b: float) -> float:
    year = DAYS_PER_YEAR * 86_400
    gap = abs(a - b) % year
    return min(gap, year - gap) / 86_400


@pytest.mark.parametrize("sensor_set", [SENSORS[:1], SENSORS[:2]])
@pytest.mark.parametrize("view", [TemporalPair(0), TemporalPair(1), TemporalPair(200), SeasonPair(30), SeasonPair(120)])
def test_pairs_keep_their_distance(view: TemporalPair | SeasonPair, sensor_set: tuple[str, ...]) -> None:
    """Every date that has a partner is once the first of a pair, and every pair is one that the rule allows."""
    tiles, partners = made_up(), Counter[int]()
    samples = view.samples(tiles, sensor_set)
    found, expected_sites = grouped(samples), 0
    for key, parts in by_site(tiles, sensor_set).items():
        anchor, given = anchor_of(parts, 2), found.get(key, [])
        if anchor is None or not (parts[anchor]["timed"].all() or getattr(view, "min_gap_days", 1) == 0):
            assert not given
            continue
        dates = parts[anchor]
        when = dict(zip(dates["row"], dates["when"]))

        def may(a: int, b: int, when: dict[int, float] = when) -> bool:
            if isinstance(view, SeasonPair):
                return apart_in_season(when[a], when[b]) >= view.min_gap_days
            return abs(when[a] - when[b]) >= max(view.min_gap_days * 86_400, 1)

        paired = [row for row in when if any(may(row, other) for other in when)]
        assert len(given) == len(paired)
        expected_sites += bool(paired)
        for sample in given:
            first, second = sample[anchor]
            assert when[first] < when[second]
            assert may(first, second)
            for name, part in parts.items():
                if name != anchor:
                    assert sample[name] == (nearest(part, when[first]), nearest(part, when[second]))
        first_of = Counter(row for sample in given for row in set(sample[anchor]))
        assert set(first_of) >= set(paired)
        partners.update([len({sample[anchor] for sample in given})])
    assert expected_sites > 15
    assert max(partners) > 2


@pytest.mark.parametrize("sensor_set", [SENSORS[:1], SENSORS[:2]])
def test_triples_begin_with_every_date_and_go_on_with_any(sensor_set: tuple[str, ...]) -> None:
    """As drawn with replacement: over all samples each place among a site's dates is as frequent, and some dates coincide."""
    tiles, places = made_up(400), np.zeros((3, 5))
    found, coincide = grouped(DateTriple().samples(tiles, sensor_set)), []
    for key, parts in by_site(tiles, sensor_set).items():
        anchor, given = anchor_of(parts, 3), found.get(key, [])
        if anchor is None:
            assert not given
            continue
        rows = parts[anchor]["row"].tolist()
        assert [sample[anchor][0] for sample in given] == rows
        for sample in given if len(rows) == 5 else []:
            coincide.append(len(set(sample[anchor])) < 3)
            for number, row in enumerate(sample[anchor]):
                places[number, rows.index(row)] += 1
    assert len(coincide) > 90
    share = places / places.sum(1, keepdims=True)
    assert np.abs(share - 1 / 5).max() < 0.1
    assert np.mean(coincide) == pytest.approx(1 - 4 / 5 * 3 / 5, abs=0.12)


def test_times_of_pairs_are_those_of_their_tiles() -> None:
    tiles = made_up(unknown=0)
    samples = TemporalPair(30).samples(tiles, SENSORS[:2])
    at = {(t.shard, t.sensor, t.row): t.time.timestamp() / 86_400 for t in tiles.itertuples()}
    for name in SENSORS[:2]:
        for n in range(len(samples)):
            wanted = [at[samples.shard[n], name, row] for row in samples.rows[name][n].tolist()]
            assert samples.time_days[name][n].tolist() == pytest.approx(wanted)
    anchor_gap = np.maximum(*(np.ptp(samples.time_days[name], axis=1) for name in SENSORS[:2]))
    assert (anchor_gap >= 30 - 1e-6).all()


@pytest.mark.parametrize("num_dates", [1, 3, 20])
def test_stacks_show_every_tile_once(num_dates: int) -> None:
    tiles = made_up()
    samples = DateStack(num_dates).samples(tiles, SENSORS)
    for name in SENSORS:
        assert samples.rows[name].shape == (len(samples), num_dates)
        shown = [(s, r) for s, rows in zip(samples.shard, samples.rows[name].tolist()) for r in rows if r >= 0]
        mine = tiles[tiles["sensor"] == name]
        assert Counter(shown) == Counter(zip(mine["shard"], mine["row"]))
        absent = samples.rows[name] < 0
        assert np.isnan(samples.time_days[name][absent]).all()
    for key, parts in by_site(tiles, SENSORS).items():
        given = grouped(samples)[key]
        assert len(given) == -(-max(map(len, parts.values())) // num_dates)
        for sample in given:
            for name, part in parts.items():
                when = dict(zip(part["row"], part["when"]))
                times = [when[row] for row in sample[name] if row >= 0]
                assert times == sorted(times)


@pytest.mark.parametrize("view", [Single(), CrossSensor(), TemporalPair(20), SeasonPair(), DateTriple(), DateStack(3)])
def test_a_shards_samples_need_no_other_shard(view: View) -> None:
    """The samples of all shards together are those of each, one after the other."""
    tiles = made_up()
    together = view.samples(tiles, SENSORS[:2])
    alone = [view.samples(tiles[tiles["shard"] == shard], SENSORS[:2]) for shard in sorted(set(tiles["shard"]))]
    assert together.shard.tolist() == [s for part in alone for s in part.shard]
    for name in SENSORS[:2]:
        assert np.array_equal(together.rows[name], np.concatenate([part.rows[name] for part in alone]))
    lon = {(t.shard, t.site): t.lon_deg for t in tiles.itertuples()}
    assert together.lonlat_deg[:, 0].tolist() == [lon[key] for key in zip(together.shard, together.site)]


def test_nothing_fits_is_no_sample() -> None:
    tiles = made_up(4)
    for view in (Single(), TemporalPair(10_000), SeasonPair(), DateTriple(), DateStack(2)):
        assert len(view.samples(tiles[:0] if not isinstance(view, TemporalPair) else tiles, SENSORS[:1])) == 0
    assert len(CrossSensor().samples(tiles, ("sentinel2_l2a", "ombria_sar"))) == 0


def test_views_refuse_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="num_dates of a stack is 0, expected at least 1"):
        DateStack(0)
    with pytest.raises(InputError, match="min_gap_days of seasons is 200, expected more than 0 and less than half a year"):
        SeasonPair(200)
    with pytest.raises(InputError, match="min_gap_days of a pair is -1, expected 0 or more"):
        TemporalPair(-1)


def test_sets_are_of_one_of_two_or_of_all_sensors() -> None:
    tiles, sensors = made_up(), {name: load_sensor(name) for name in SENSORS}
    found = presence(tiles)
    halves = presence(tiles[tiles["shard"] < "s_2"]) + presence(tiles[tiles["shard"] >= "s_2"])
    assert found == halves
    pairs = {frozenset(s) for s in sensor_sets(found, sensors, CrossSensor())}
    assert frozenset(("sentinel2_l2a", "sentinel1_grd")) in pairs
    assert frozenset(("sentinel2_l2a", "dsm")) in pairs
    assert sensor_sets(found, sensors, TemporalPair()) == [(name,) for name in sorted(SENSORS)]
    assert sensor_sets(found, sensors, DateStack()) == [tuple(sorted(SENSORS))]


def test_default_sets_pair_everything_with_reflectance(archive: str) -> None:
    opened = open_archive(archive)
    found = {frozenset(s) for s in sensor_sets(presence(opened.catalog()), opened.sensors, CrossSensor())}
    assert found == {frozenset(("sentinel2_l2a", other)) for other in ("sentinel1_grd", "rgb_aerial", "dsm")}
