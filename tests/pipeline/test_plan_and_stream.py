from collections import Counter
from itertools import islice

import numpy as np
import pandas as pd
import pytest

from pipeline.archive import open_archive
from pipeline.errors import InputError
from pipeline.plan import Plan, SetPlan
from pipeline.stream import Stream, collate, read_window, tile_times
from pipeline.views import dihedral, samples, sensor_sets

PAIR = ("sentinel2_l2a", "sentinel1_grd")


def table(num_shards: int, per_shard: int) -> pd.DataFrame:
    return pd.DataFrame({"shard": [f"s{i}" for i in range(num_shards) for _ in range(per_shard)]})


def make_plan(num_lanes: int = 4, batch_size: int = 3, num_shards: int = 9, per_shard: int = 5) -> SetPlan:
    return SetPlan(("a",), table(num_shards, per_shard), num_lanes, batch_size, window_shards=2, seed=7)


def test_a_pass_shows_every_sample_once() -> None:
    plan = make_plan()
    seen: Counter[int] = Counter()
    for lane in range(4):
        length = plan.lane_length(lane)
        sequence = np.concatenate([plan.micro_batch(lane, k) for k in range(-(-2 * length // 3))])
        assert sorted(sequence[:length]) == sorted(sequence[length : 2 * length])
        assert not np.array_equal(sequence[:length], sequence[length : 2 * length])
        seen.update(sequence[:length].tolist())
    assert seen == Counter(range(45))


def test_few_shards_are_shared_by_many_lanes() -> None:
    plan = make_plan(num_lanes=4, num_shards=2, per_shard=10)
    seen = [s for lane in range(4) for s in np.concatenate([w.samples for w in islice(plan.windows(lane, 0), 1)])]
    assert all(plan.lane_length(lane) for lane in range(4))
    assert len(seen) == len(set(seen))


def test_steps_follow_the_weights_and_do_not_depend_on_the_start() -> None:
    plan = Plan([make_plan(), make_plan(), make_plan()], [6.0, 3.0, 1.0])
    steps = list(plan.steps(0, 100))
    assert Counter(s.sensor_set for s in steps) == {0: 60, 1: 30, 2: 10}
    assert list(plan.steps(37, 100)) == steps[37:]
    assert [s.index for s in steps if s.sensor_set == 1] == list(range(30))


def test_any_number_of_ranks_serves_each_lane_once() -> None:
    plan = Plan([make_plan(num_lanes=8)], [1.0])
    for world_size in (1, 2, 4, 8):
        lanes = [lane for rank in range(world_size) for lane in plan.lanes_of(rank, world_size, 0)]
        assert sorted(lanes) == list(range(8))
    with pytest.raises(InputError, match="8 lanes cannot be shared evenly by 3 workers"):
        plan.lanes_of(0, 3, 0)
    with pytest.raises(InputError, match="3 samples of a for 4 lanes"):
        SetPlan(("a",), table(1, 3), 4, 1, 1, 0)


def test_samples_pair_tiles_nearest_in_time(archive: str) -> None:
    opened = open_archive(archive)
    catalog = opened.catalog()
    pairs = samples(catalog, PAIR)
    times = tile_times(catalog)
    by_sensor = {n: catalog[catalog["sensor"] == n].groupby(["shard", "site"])["row"].apply(list) for n in PAIR}
    assert len(pairs)
    for row in pairs.itertuples():
        chosen = {name: times[name][row.shard, getattr(row, name)] for name in PAIR}
        gap = abs(chosen[PAIR[0]] - chosen[PAIR[1]])
        fewest = min(PAIR, key=lambda n: (len(by_sensor[n][row.shard, row.site]), PAIR.index(n)))
        other = next(n for n in PAIR if n != fewest)
        others = [times[other][row.shard, r] for r in by_sensor[other][row.shard, row.site]]
        assert gap == min(abs(chosen[fewest] - t) for t in others)
    with pytest.raises(InputError, match="no site has all of sentinel2_l2a, ombria_sar"):
        samples(catalog, ("sentinel2_l2a", "ombria_sar"))


def test_default_sets_pair_everything_with_reflectance(archive: str) -> None:
    opened = open_archive(archive)
    found = {frozenset(s) for s in sensor_sets(opened.catalog(), opened.sensors)}
    assert found == {frozenset(("sentinel2_l2a", other)) for other in ("sentinel1_grd", "rgb_aerial", "dsm")}


def test_stream_delivers_the_plan_at_any_world_size_and_start(archive: str) -> None:
    """The pixels of every micro-batch are those of the planned tiles, under one of the square's symmetries."""
    opened = open_archive(archive)
    catalog = opened.catalog()
    train = catalog[catalog["split"] == "train"]
    sets = [PAIR, ("sentinel2_l2a", "dsm")]
    plan = Plan([SetPlan(s, samples(train, s), 2, 4, 2, seed=1) for s in sets], [2.0, 1.0])
    times = tile_times(catalog)

    def deliver(rank: int, world_size: int, start: int) -> dict[tuple[int, int], dict[str, np.ndarray]]:
        stream = Stream(opened, plan, times, rank, world_size, start, 9)
        return {(m.step.step, m.lane): {n: a.pixels for n, a in m.sensors.items()} for step in stream for m in step}

    whole = deliver(0, 1, 0)
    assert sorted(whole) == [(step, lane) for step in range(9) for lane in range(2)]
    halves = deliver(0, 2, 0) | deliver(1, 2, 0)
    late = deliver(0, 1, 5)
    for key, sensors in whole.items():
        for name, pixels in sensors.items():
            assert np.array_equal(pixels, halves[key][name])
            if key[0] >= 5:
                assert np.array_equal(pixels, late[key][name])
    for step in plan.steps(0, 9):
        chosen = plan.sets[step.sensor_set]
        for lane in range(2):
            planned = chosen.samples.iloc[chosen.micro_batch(lane, step.index)]
            for name in chosen.sensor_set:
                for given, shard, row in zip(whole[step.step, lane][name], planned["shard"], planned[name]):
                    stored, _ = opened.read(shard, name, np.array([row]))
                    tile = opened.sensors[name].to_physical(stored[0])
                    assert any(np.array_equal(given[0], dihedral(tile, s)) for s in range(8))


def test_dihedral_has_eight_symmetries() -> None:
    image = np.arange(9).reshape(3, 3)
    assert len({dihedral(image, s).tobytes() for s in range(8)}) == 8
    assert np.array_equal(dihedral(image, 0), image)


def test_one_symmetry_moves_all_of_a_sample(archive: str) -> None:
    """Pixels and validity of both sensors turn together; times and places are those of the catalog."""
    opened = open_archive(archive)
    catalog = opened.catalog()
    plan = SetPlan(PAIR, samples(catalog, PAIR), 1, 24, 4, seed=3)
    window = next(plan.windows(0, 0))
    (step,) = Plan([plan], [1.0]).steps(0, 1)
    given = collate(opened, plan, step, 0, read_window(opened, plan, tile_times(catalog), window))
    indexed = catalog.set_index(["sensor", "shard", "row"])
    used = set()
    for number, planned in enumerate(plan.samples.iloc[window.samples].itertuples()):
        fitting = set(range(8))
        for name in PAIR:
            row = getattr(planned, name)
            stored, valid = opened.read(planned.shard, name, np.array([row]))
            part, entry = given.sensors[name], indexed.loc[(name, planned.shard, row)]
            tile = opened.sensors[name].to_physical(stored[0])
            assert not np.array_equal(tile, dihedral(tile, 1))
            fitting &= {
                s
                for s in range(8)
                if np.array_equal(part.pixels[number, 0], dihedral(tile, s))
                and np.array_equal(part.is_valid[number, 0], dihedral(valid[0], s) > 0)
            }
            assert part.time_days[number, 0] == pytest.approx((entry["time"] - pd.Timestamp(0, tz="UTC")).total_seconds() / 86_400)
            assert given.lonlat_deg[number].tolist() == [entry["lon_deg"], entry["lat_deg"]]
        assert len(fitting) == 1
        used |= fitting
    assert len(used) > 2


def test_without_times_dates_are_paired_in_order() -> None:
    catalog = pd.DataFrame(
        [
            {
                "site": "x",
                "shard": "s",
                "sensor": sensor,
                "order": order,
                "row": 10 * order + base,
                "time": pd.NaT,
                "lon_deg": np.nan,
                "lat_deg": np.nan,
            }
            for sensor, base, dates in (("a", 0, 2), ("b", 1, 3))
            for order in range(dates)
        ]
    )
    found = samples(catalog, ("b", "a"))
    assert found[["a", "b"]].to_numpy().tolist() == [[0, 1], [10, 11]]
    assert len(samples(catalog, ("b",))) == 3


def test_every_world_size_sees_the_same_global_batches() -> None:
    plan = Plan([make_plan(num_lanes=4), make_plan(num_lanes=8)], [2.0, 1.0])
    orders = []
    for world_size in (1, 2, 4):
        order = []
        for step in plan.steps(0, 12):
            chosen = plan.sets[step.sensor_set]
            lanes = {
                lane: chosen.micro_batch(lane, step.index)
                for rank in range(world_size)
                for lane in plan.lanes_of(rank, world_size, step.sensor_set)
            }
            order.append(np.concatenate([lanes[lane] for lane in sorted(lanes)]).tolist())
        orders.append(order)
    assert orders[0] == orders[1] == orders[2]
    assert len({tuple(batch) for batch in orders[0]}) == 12
    assert all(len(batch) in (12, 24) for batch in orders[0])


def test_weights_must_be_positive_and_one_a_set() -> None:
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(InputError, match="2 sensor sets need as many positive weights, found"):
            Plan([make_plan(), make_plan()], weights)
