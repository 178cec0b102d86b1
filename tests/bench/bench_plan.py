"""Planning at the size of a real archive, on the head and on a rank: python -m tests.bench.bench_plan.

The catalog is made up: sites with several dates of two sensors. Counting is timed on some of its shards, the rest on
all. Memory is the peak of the process, Python and libraries included.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import tyro

from pipeline.plan import Plan, SetPlan
from pipeline.views import CrossSensor

SENSORS = ("sentinel2_l2a", "sentinel1_grd")


@dataclass(frozen=True)
class Options:
    tiles: int = 100_000_000
    sites_per_shard: int = 500
    dates: int = 4
    lanes: int = 64
    batch_size: int = 32
    window_shards: int = 4
    counted_shards: int = 1000


@contextmanager
def timed(what: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:74} {time.perf_counter() - started:8.3f} s, peak {peak:.2f} GiB so far", flush=True)


def catalog_of(shards: range, options: Options) -> pd.DataFrame:
    """Return rows like those of `Archive.tiles`: every fifth site has no tile of the second sensor."""
    rng = np.random.default_rng(shards.start)
    shape = (len(shards), len(SENSORS), options.sites_per_shard, options.dates)
    shard, sensor, site, order = (index.ravel() for index in np.indices(shape))
    rows = pd.DataFrame(
        {
            "shard": np.array([f"s_{n:06d}" for n in shards], object)[shard],
            "site": np.array([f"32_{n:06d}_000000" for n in range(options.sites_per_shard)], object)[site],
            "sensor": np.array(SENSORS, object)[sensor],
            "order": order,
            "row": np.tile(np.arange(options.sites_per_shard * options.dates), len(shards) * len(SENSORS)),
            "time": pd.to_datetime(rng.integers(0, 10**9, len(order)), unit="s", utc=True),
            "lon_deg": 0.0,
            "lat_deg": 0.0,
        }
    )
    return rows[(sensor == 0) | (site % 5 > 0)]


def count(options: Options) -> None:
    tiles = 0
    made = [catalog_of(range(n, n + 50), options) for n in range(0, options.counted_shards, 50)]
    with timed(f"count the samples of {options.counted_shards} shards"):
        for part in made:
            samples = CrossSensor().samples(part, SENSORS)
            pd.Series(samples.shard).value_counts()
            tiles += len(part)
    print(f"{'':74} {tiles / 1e6:.1f} million tiles")


def main(options: Options) -> None:
    num_shards = options.tiles // (options.sites_per_shard * options.dates * len(SENSORS))
    sizes = np.random.default_rng(0).integers(1, 2 * options.sites_per_shard * options.dates, num_shards)
    shards = [f"s_{n:06d}" for n in range(num_shards)]

    def new() -> Plan:
        chosen = SetPlan(SENSORS, shards, sizes, options.lanes, options.batch_size, options.window_shards, seed=0)
        return Plan([chosen], [1.0])

    print(f"{options.tiles:,} tiles in {num_shards:,} shards, {sizes.sum():,} samples of two, {options.lanes} lanes")
    with timed("resume at step N: from the numbers per shard to the micro-batches of a step"):
        plan = new()
        (step,) = plan.steps(10**9, 10**9 + 1)
        for lane in plan.lanes_of(0, 1, 0):
            plan.sets[0].micro_batch(lane, step.index)
    with timed("the share of rank 5 of 64: order of one pass"):
        chosen = new().sets[0]
        share = sum(len(order_of_pass(chosen, lane)) for lane in Plan([chosen], [1.0]).lanes_of(5, 64, 0))
    print(f"{'':74} {share:,} samples")
    with timed("order of one pass of all lanes"):
        chosen = new().sets[0]
        order = np.concatenate([order_of_pass(chosen, lane) for lane in range(options.lanes)])
    assert len(order) == sizes.sum()
    with timed("  (each sample once: checked by counting)"):
        assert (np.bincount(order, minlength=len(order)) == 1).all()
    count(options)


def order_of_pass(plan: SetPlan, lane: int) -> np.ndarray:
    """Return the sample numbers of the lane's first pass in order."""
    order, length = np.empty(plan.lane_length(lane), np.uint32), plan.lane_length(lane)
    for window in plan.windows(lane, 0):
        if window.start >= length:
            return order
        order[window.start : window.stop] = plan.first[window.shard] + window.number
    raise AssertionError("windows are endless")


if __name__ == "__main__":
    main(tyro.cli(Options))
