"""The order of samples is the plan's, however it is read: through the real stream, on a real cluster."""

import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import ray

from pipeline import stream
from pipeline.archive import Archive, open_archive
from pipeline.augment import AugmentConfig, dihedral
from pipeline.crops import MultiCrop
from pipeline.errors import InputError
from pipeline.plan import CYCLE, Plan, SetPlan
from pipeline.samples import SampleSource
from pipeline.stream import MicroBatch, Stream, StreamConfig
from pipeline.views import CrossSensor, DateStack, TemporalPair

PAIR = ("sentinel2_l2a", "sentinel1_grd")
SETS = [PAIR, ("sentinel2_l2a", "dsm")]
NUM_STEPS = 9
SEEN_AS_IS = StreamConfig(augment=AugmentConfig(symmetries=False))


@pytest.fixture(autouse=True)
def _ray_data_from_the_start_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not 512 samples of each lane later: there are too few here."""
    monkeypatch.setattr(stream, "SAMPLES_IN_FIRST", 0)


def make_plan(num_lanes: int = 4, batch_size: int = 3, num_shards: int = 9, per_shard: int = 5) -> SetPlan:
    shards = [f"s{i}" for i in range(num_shards)]
    return SetPlan(("a",), shards, np.full(num_shards, per_shard), num_lanes, batch_size, window_shards=2, seed=7)


def plan_of(source: SampleSource, sets: list[tuple[str, ...]], num_lanes: int = 4) -> Plan:
    counts = source.count(sets)
    return Plan([SetPlan(s, *counts[s], num_lanes, 4, 2, seed=1) for s in sets], [2.0, 1.0][: len(sets)])


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


def test_windows_from_any_position_are_those_from_the_start() -> None:
    plan = make_plan(num_lanes=2, num_shards=13, per_shard=7)
    length = plan.lane_length(1)
    whole = list(islice(plan.windows(1, 0), 40))
    assert [w.start for w in whole[1:]] == [w.stop for w in whole[:-1]]
    for position in (0, 1, 13, length - 1, length, 2 * length + 20):
        given = next(plan.windows(1, position))
        assert given.start <= position < given.stop
        (same,) = [w for w in whole if w.start == given.start]
        assert np.array_equal(given.shard, same.shard)
        assert np.array_equal(given.number, same.number)
    assert max(len(np.unique(w.shard)) for w in whole) == 2


def test_few_shards_are_shared_by_many_lanes() -> None:
    plan = make_plan(num_lanes=4, num_shards=2, per_shard=10)
    seen = [
        (s, n) for lane in range(4) for w in islice(plan.windows(lane, 0), 1) for s, n in zip(w.shard.tolist(), w.number.tolist())
    ]
    assert all(plan.lane_length(lane) for lane in range(4))
    assert len(seen) == len(set(seen)) == 20


def test_lanes_are_even_where_shards_are_not() -> None:
    sizes = np.random.default_rng(0).integers(1, 400, 500)
    plan = SetPlan(("a",), [str(i) for i in range(500)], sizes, 8, 4, 4, seed=0)
    lengths = [plan.lane_length(lane) for lane in range(8)]
    assert sum(lengths) == sizes.sum()
    assert max(lengths) - min(lengths) < 400
    assert max(lengths) / min(lengths) < 1.01


def test_steps_follow_the_weights_and_do_not_depend_on_the_start() -> None:
    plan = Plan([make_plan(), make_plan(), make_plan()], [6.0, 3.0, 1.0])
    steps = list(plan.steps(0, 2 * CYCLE + 100))
    assert Counter(s.sensor_set for s in steps[:100]) == {0: 60, 1: 30, 2: 10}
    assert Counter(s.sensor_set for s in steps[: 2 * CYCLE]) == {0: 1200, 1: 600, 2: 200}
    for start in (37, CYCLE - 1, CYCLE, CYCLE + 1, 2 * CYCLE + 3):
        assert list(plan.steps(start, 2 * CYCLE + 100)) == steps[start:]
    assert [s.index for s in steps if s.sensor_set == 1] == list(range(630))
    (late,) = plan.steps(10**12, 10**12 + 1)
    assert late.index == 6 * 10**11
    assert plan.taken(10**12 + 1) == [6 * 10**11 + 1, 3 * 10**11, 10**11]
    rare = Plan([make_plan(), make_plan()], [1.0, 1e6])
    assert Counter(s.sensor_set for s in rare.steps(0, CYCLE)) == {0: 1, 1: CYCLE - 1}


def test_any_number_of_ranks_serves_each_lane_once() -> None:
    plan = Plan([make_plan(num_lanes=8)], [1.0])
    for world_size in (1, 2, 4, 8):
        lanes = [lane for rank in range(world_size) for lane in plan.lanes_of(rank, world_size, 0)]
        assert sorted(lanes) == list(range(8))
    with pytest.raises(InputError, match="8 lanes cannot be shared evenly by 3 workers"):
        plan.lanes_of(0, 3, 0)
    with pytest.raises(InputError, match="3 samples of a for 4 lanes"):
        make_plan(num_shards=1, per_shard=3)


def test_weights_must_be_positive_and_one_a_set() -> None:
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(InputError, match="2 sensor sets need as many positive weights, found"):
            Plan([make_plan(), make_plan()], weights)


@pytest.fixture(scope="module")
def opened(archive: str) -> Archive:
    return open_archive(archive)


def deliver(
    source: SampleSource, plan: Plan, rank: int, world_size: int, start: int, config: StreamConfig
) -> dict[tuple[int, int], MicroBatch]:
    read = Stream(source, plan, rank, world_size, start, NUM_STEPS, config)
    return {(m.step.step, m.lane): m for step in read for m in step}


def assert_same(one: MicroBatch, other: MicroBatch) -> None:
    assert np.array_equal(one.sample, other.sample)
    assert np.array_equal(one.lonlat_deg, other.lonlat_deg, equal_nan=True)
    assert len(one.crops) == len(other.crops)
    for given, expected in zip((one.sensors, *one.crops), (other.sensors, *other.crops)):
        assert given.keys() == expected.keys()
        for name in given:
            for part in ("pixels", "is_valid", "is_present", "time_days"):
                found, wanted = getattr(given[name], part), getattr(expected[name], part)
                assert found.dtype == wanted.dtype
                assert np.array_equal(found, wanted, equal_nan=part in ("pixels", "time_days")), (name, part)


@pytest.mark.parametrize("decode", ["trainer", "cpu_nodes"])
def test_every_world_size_and_start_gives_the_same_global_batches(opened: Archive, decode: str) -> None:
    """The samples are the plan's and the bytes the same, at 1, 2 and 4 ranks and from any step."""
    source, config = SampleSource(opened, CrossSensor()), StreamConfig(decode=decode)  # type: ignore[arg-type]
    plan = plan_of(source, SETS)
    whole = deliver(source, plan, 0, 1, 0, config)
    assert sorted(whole) == [(step, lane) for step in range(NUM_STEPS) for lane in range(4)]
    for step in plan.steps(0, NUM_STEPS):
        for lane in range(4):
            planned = plan.sets[step.sensor_set].micro_batch(lane, step.index)
            assert whole[step.step, lane].sample.tolist() == planned.tolist()
    for world_size, start in ((2, 0), (4, 0), (2, 5), (1, 8)):
        parts: dict[tuple[int, int], MicroBatch] = {}
        for rank in range(world_size):
            parts |= deliver(source, plan, rank, world_size, start, config)
        assert sorted(parts) == [key for key in sorted(whole) if key[0] >= start]
        for key, micro in parts.items():
            assert_same(micro, whole[key])


@pytest.mark.parametrize("view", [CrossSensor(), TemporalPair(), DateStack(3)])
def test_all_ways_of_decoding_give_the_same_bits(opened: Archive, view: object) -> None:
    source = SampleSource(opened, view)  # type: ignore[arg-type]
    config = StreamConfig(
        augment=AugmentConfig(brightness=0.2, contrast=0.2, speckle_looks=4, crop_area=(0.5, 1)), crops=MultiCrop(2, 320, 2, 160)
    )
    plan = plan_of(source, [PAIR], num_lanes=2)
    by_trainer = deliver(source, plan, 0, 1, 3, replace(config, decode="trainer"))
    by_tasks = deliver(source, plan, 0, 1, 3, replace(config, decode="cpu_nodes", threads=1))
    without_ray = deliver(source, plan, 0, 1, 3, replace(config, decode="process"))
    assert len(by_trainer) == 2 * (NUM_STEPS - 3)
    assert by_trainer.keys() == by_tasks.keys() == without_ray.keys()
    for key, micro in by_trainer.items():
        assert_same(micro, by_tasks[key])
        assert_same(micro, without_ray[key])


@pytest.mark.parametrize("decode", ["trainer", "cpu_nodes"])
def test_the_first_samples_do_not_wait_for_ray_data(opened: Archive, decode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, config = SampleSource(opened, CrossSensor()), StreamConfig(decode=decode)  # type: ignore[arg-type]
    plan, is_needed, begun = plan_of(source, [PAIR], num_lanes=2), Event(), Event()
    monkeypatch.setattr(stream, "SAMPLES_IN_FIRST", 40)
    read = ray.data.read_datasource

    def read_late(*args: object, **options: object) -> object:
        begun.set()
        assert is_needed.wait(20)
        return read(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ray.data, "read_datasource", read_late)
    steps = iter(Stream(source, plan, 0, 1, 0, 150, config))
    first = next(steps)
    assert [micro.sample.tolist() for micro in first] == [plan.sets[0].micro_batch(lane, 0).tolist() for lane in range(2)]
    assert begun.wait(20), "Ray Data begins meanwhile"
    is_needed.set()
    seen = [first, *steps]
    for lane in range(2):
        planned = [plan.sets[0].micro_batch(lane, step).tolist() for step in range(150)]
        assert [micro_batches[lane].sample.tolist() for micro_batches in seen] == planned


def test_what_is_short_needs_no_ray_data(opened: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SAMPLES_IN_FIRST", 4 * NUM_STEPS)
    asked: list[object] = []
    monkeypatch.setattr(ray.data, "read_datasource", lambda *args, **options: asked.append(args))
    source = SampleSource(opened, CrossSensor())
    for decode in ("trainer", "cpu_nodes"):
        for start in (0, NUM_STEPS - 1):
            found = deliver(source, plan_of(source, SETS), 0, 1, start, StreamConfig(decode=decode))  # type: ignore[arg-type]
            assert len(found) == 4 * (NUM_STEPS - start)
    assert not asked


def test_a_micro_batch_holds_the_tiles_of_the_catalog(opened: Archive) -> None:
    """Pixels, validity, times and places are those of the planned tiles; absent ones are nowhere valid."""
    source = SampleSource(opened, DateStack(3))
    plan = plan_of(source, [PAIR], num_lanes=2)
    chosen, catalog = plan.sets[0], opened.catalog().set_index(["sensor", "shard", "row"])
    samples = {shard: source.of_shard(shard, PAIR) for shard in chosen.shards}
    absent = 0
    for micro in deliver(source, plan, 0, 1, 0, SEEN_AS_IS).values():
        for place, sample in enumerate(micro.sample.tolist()):
            where = int(np.searchsorted(chosen.first, sample, "right")) - 1
            shard, number = chosen.shards[where], sample - chosen.first[where]
            for name, arrays in micro.sensors.items():
                for date, row in enumerate(samples[shard].rows[name][number].tolist()):
                    assert arrays.is_present[place, date] == (row >= 0)
                    if row < 0:
                        assert not arrays.is_valid[place, date].any()
                        assert np.isnan(arrays.time_days[place, date])
                        absent += 1
                        continue
                    stored, valid = opened.read(shard, name, np.array([row]))
                    entry = catalog.loc[(name, shard, row)]
                    assert np.array_equal(arrays.pixels[place, date], opened.sensors[name].to_physical(stored[0]))
                    assert np.array_equal(arrays.is_valid[place, date], valid[0] > 0)
                    assert arrays.time_days[place, date] == pytest.approx(entry["time"].timestamp() / 86_400)
                    assert micro.lonlat_deg[place].tolist() == [entry["lon_deg"], entry["lat_deg"]]
    assert absent


def test_one_symmetry_moves_all_of_a_sample(opened: Archive) -> None:
    source = SampleSource(opened, CrossSensor())
    plan = plan_of(source, [PAIR], num_lanes=2)
    still, turned = deliver(source, plan, 0, 1, 0, SEEN_AS_IS), deliver(source, plan, 0, 1, 0, StreamConfig())
    used = set()
    for key, micro in still.items():
        for place in range(len(micro.sample)):
            fitting = {
                s
                for s in range(8)
                if all(
                    np.array_equal(dihedral(getattr(a, part)[place], s), getattr(turned[key].sensors[n], part)[place])
                    for n, a in micro.sensors.items()
                    for part in ("pixels", "is_valid")
                )
            }
            assert len(fitting) == 1
            used |= fitting
    assert used == set(range(8))


def test_plain_windows_keep_their_values(opened: Archive) -> None:
    source = SampleSource(opened, CrossSensor())
    crops = MultiCrop(2, 320, 0, num_plain=1)
    config = StreamConfig(augment=AugmentConfig(brightness=0.3, contrast=0.3, speckle_looks=4), crops=crops)
    for micro in deliver(source, plan_of(source, [PAIR], num_lanes=2), 0, 1, 0, config).values():
        for name, arrays in micro.sensors.items():
            shares = [np.isin(crop[name].pixels, arrays.pixels).mean() for crop in micro.crops]
            assert shares[0] == 1
            assert shares[1] < 0.2
    with pytest.raises(InputError, match="num_plain is 3, expected 0 to 2"):
        MultiCrop(2, 320, 0, num_plain=3)


def test_a_steps_tiles_have_one_size_on_all_ranks(opened: Archive) -> None:
    """Cut from the whole tiles, on the same ground for all sensors of a sample; sizes in turn as the seed has it."""
    source, sizes = SampleSource(opened, CrossSensor()), (320.0, 480.0)
    plan, as_is = plan_of(source, SETS, num_lanes=2), SEEN_AS_IS
    whole = deliver(source, plan, 0, 1, 0, as_is)
    found: dict[int, set[float]] = {}
    for rank in range(2):
        for key, micro in deliver(source, plan, rank, 2, 0, replace(as_is, sizes_m=sizes)).items():
            for name, arrays in micro.sensors.items():
                side = arrays.pixels.shape[-1]
                found.setdefault(key[0], set()).add(side * arrays.sensor.gsd_m)
                windows = np.lib.stride_tricks.sliding_window_view(whole[key].sensors[name].pixels[0, 0, 0], (side, side))
                assert (windows == arrays.pixels[0, 0, 0]).all((-1, -2)).sum() == 1
    assert all(len(of_step) == 1 for of_step in found.values())
    assert {size for of_step in found.values() for size in of_step} == set(sizes)
    with pytest.raises(InputError, match="crops and sizes_m are both set"):
        StreamConfig(crops=MultiCrop(), sizes_m=sizes)


def test_killed_and_resumed_is_unbroken(opened: Archive, tmp_path: Path) -> None:
    """A rank is killed while it reads; another goes on from the last step that was written down."""

    @ray.remote(num_cpus=0)
    class Rank:
        def run(self, source: SampleSource, plan: Plan, start: int, folder: Path) -> None:
            for micro_batches in Stream(source, plan, 0, 1, start, 150, StreamConfig()):
                text = " ".join(str(m.sample.tolist()) for m in micro_batches)
                (folder / f"{micro_batches[0].step.step:04d}").write_text(text)

    source = SampleSource(opened, CrossSensor())
    plan, unbroken, killed = plan_of(source, SETS), tmp_path / "unbroken", tmp_path / "killed"
    unbroken.mkdir()
    killed.mkdir()
    ray.get(Rank.remote().run.remote(source, plan, 0, unbroken))  # type: ignore[attr-defined]
    rank = Rank.remote()  # type: ignore[attr-defined]
    rank.run.remote(source, plan, 0, killed)
    while len(list(killed.iterdir())) < 20:
        time.sleep(0.01)
    ray.kill(rank)
    time.sleep(0.5)
    done = len(list(killed.iterdir()))
    assert 20 <= done < 150
    ray.get(Rank.remote().run.remote(source, plan, done - 1, killed))  # type: ignore[attr-defined]
    steps = [path.read_text() for path in sorted(unbroken.iterdir())]
    assert len(steps) == 150
    assert [path.read_text() for path in sorted(killed.iterdir())] == steps


def test_a_shard_that_lost_samples_is_one_line(opened: Archive) -> None:
    source = SampleSource(opened, CrossSensor())
    plan = plan_of(source, [PAIR], num_lanes=2)
    grown = replace(plan.sets[0], sizes=plan.sets[0].sizes + 50)
    with pytest.raises(InputError, match=r"shard '.+' of '.+' has changed since the run began; start a new run"):
        deliver(source, Plan([grown], [1.0]), 0, 1, 0, StreamConfig())
