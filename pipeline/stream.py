"""Ray Data streams the plan's samples from the shards to one rank.

One read task per lane window; a dataset takes the next few windows that the steps of a sensor set need, and is drained
at once while the one before it is trained on. Blocks carry stored integers, one tensor column per sensor; physical units
are made here, at the end of the way, for the samples of one micro-batch.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata

from pipeline.archive import Archive
from pipeline.plan import Plan, SetPlan, Step, Window
from pipeline.sensors import Sensor
from pipeline.views import dihedral

BLOCK_ROWS = 64
# A dataset left waiting with finished blocks polls without sleeping (Ray 2.60) and takes the interpreter from training:
# three of them made it four times slower. So a dataset is small enough to be drained into memory at once.
SAMPLES_PER_DATASET = 512
READ_CPUS = 0.25


@dataclass(frozen=True)
class SensorArrays:
    """One sensor's part of a micro-batch: pixels (B, T, C, Y, X) float32 in `sensor.unit`, is_valid (B, T, Y, X) bool,

    time_days (B, T) float64 since 1970-01-01, NaN where unknown."""

    sensor: Sensor
    pixels: np.ndarray
    is_valid: np.ndarray
    time_days: np.ndarray


@dataclass(frozen=True)
class MicroBatch:
    """One lane's share of a step; `lonlat_deg` (B, 2) is NaN without a CRS."""

    step: Step
    lane: int
    sensors: dict[str, SensorArrays]
    lonlat_deg: np.ndarray


def read_window(
    archive: Archive, plan: SetPlan, times: dict[str, dict[tuple[str, int], float]], window: Window
) -> dict[str, np.ndarray]:
    """Return the columns of the window's samples, in order. Every shard in it is read once per sensor."""
    chosen = plan.samples.iloc[window.samples]
    columns: dict[str, np.ndarray] = {
        "lane": np.full(len(chosen), window.lane),
        "position": window.start + np.arange(len(chosen)),
        "lonlat": chosen[["lon_deg", "lat_deg"]].to_numpy(),
    }
    shards = chosen["shard"].to_numpy()
    for name in plan.sensor_set:
        rows = chosen[name].to_numpy()
        shape = archive.sensors[name].tile_shape(archive.grid.site_size_m)
        pixels = np.empty((len(chosen), len(archive.sensors[name].bands), *shape), archive.sensors[name].dtype)
        is_valid = np.empty((len(chosen), *shape), np.uint8)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            unique, inverse = np.unique(rows[here], return_inverse=True)
            stored, valid = archive.read(str(shard), name, unique)
            pixels[here], is_valid[here] = stored[inverse], valid[inverse]
        columns[f"{name}/pixels"], columns[f"{name}/valid"] = pixels, is_valid
        columns[f"{name}/time"] = np.array([times[name][shard, row] for shard, row in zip(shards, rows)])
    return columns


class _WindowSource(Datasource):
    """A finite run of windows as a Ray Data source: one read task each, several blocks a task."""

    def __init__(self, archive: Archive, plan: SetPlan, times: Any, windows: list[Window]):
        super().__init__()
        self._windows, self._shared = windows, ray.put((archive, plan, times))

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        return [self._task(window) for window in self._windows]

    def _task(self, window: Window) -> ReadTask:
        shared = self._shared

        def read() -> Iterable[Block]:
            archive, plan, times = ray.get(shared)
            columns = read_window(archive, plan, times, window)
            for first in range(0, len(window.samples), BLOCK_ROWS):
                yield BlockAccessor.batch_to_block({k: v[first : first + BLOCK_ROWS] for k, v in columns.items()})

        return ReadTask(read, BlockMetadata(num_rows=len(window.samples), size_bytes=None, input_files=None, exec_stats=None))


class Stream:
    """What one rank reads from step `start` to `stop`. Iterating gives, per step, the micro-batches of its lanes."""

    def __init__(self, archive: Archive, plan: Plan, times: Any, rank: int, world_size: int, start: int, stop: int):
        self._archive, self._plan, self._times = archive, plan, times
        self._rank, self._world_size = rank, world_size
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        first: dict[int, int] = {}
        counts: dict[int, int] = defaultdict(int)
        for step in self._plan.steps(self._start, self._stop):
            first.setdefault(step.sensor_set, step.index)
            counts[step.sensor_set] += 1
        # One thread, so that only one dataset runs at a time.
        pool = ThreadPoolExecutor(1, "read-ahead")
        lanes = {s: self._plan.lanes_of(self._rank, self._world_size, s) for s in counts}
        readers = {
            s: _SetReader(self._archive, self._plan.sets[s], self._times, lanes[s], first[s], n, pool) for s, n in counts.items()
        }
        for step in self._plan.steps(self._start, self._stop):
            chosen = step.sensor_set
            yield [
                collate(self._archive, self._plan.sets[chosen], step, lane, readers[chosen].take(lane)) for lane in lanes[chosen]
            ]


def collate(archive: Archive, plan: SetPlan, step: Step, lane: int, columns: dict[str, np.ndarray]) -> MicroBatch:
    """Return columns as a micro-batch in physical units, each sample under a symmetry drawn from (seed, step, lane)."""
    symmetries = np.random.default_rng([plan.seed, step.step, lane]).integers(8, size=len(columns["lane"]))
    sensors = {}
    for name in plan.sensor_set:
        sensor = archive.sensors[name]
        pixels = np.stack([dihedral(p, s) for p, s in zip(columns[f"{name}/pixels"], symmetries)])
        is_valid = np.stack([dihedral(v, s) for v, s in zip(columns[f"{name}/valid"], symmetries)]) > 0
        times = columns[f"{name}/time"][:, None]
        sensors[name] = SensorArrays(sensor, sensor.to_physical(pixels)[:, None], is_valid[:, None], times)
    return MicroBatch(step, lane, sensors, columns["lonlat"])


class _SetReader:
    """The rows of one sensor set for the lanes of one rank, regrouped from blocks into micro-batches."""

    def __init__(
        self, archive: Archive, plan: SetPlan, times: Any, lanes: list[int], first_index: int, num_batches: int, pool: Executor
    ):
        self._archive, self._plan, self._times = archive, plan, times
        self._buffers: dict[int, list[dict[str, np.ndarray]]] = {lane: [] for lane in lanes}
        self._next = dict.fromkeys(lanes, first_index * plan.batch_size)
        self._pool = pool
        self._blocks = self._read(first_index * plan.batch_size, (first_index + num_batches) * plan.batch_size)

    def _read(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        windows = []
        for lane in self._buffers:
            for window in self._plan.windows(lane, start):
                if window.start >= stop:
                    break
                windows.append(window)
        # In the order of first need, so that what is read ahead stays small.
        windows.sort(key=lambda w: (max(w.start, start) // self._plan.batch_size, w.lane))
        ahead = None
        for chunk in _chunks(windows):
            current, ahead = ahead, self._pool.submit(self._drain, chunk)
            if current:
                yield from current.result()
        if ahead:
            yield from ahead.result()

    def _drain(self, windows: list[Window]) -> list[dict[str, np.ndarray]]:
        dataset = ray.data.read_datasource(
            _WindowSource(self._archive, self._plan, self._times, windows),
            override_num_blocks=len(windows),
            ray_remote_args={"num_cpus": READ_CPUS},
        )
        return list(dataset.iter_batches(batch_size=None, batch_format="numpy"))

    def take(self, lane: int) -> dict[str, np.ndarray]:
        """Return the lane's next micro-batch as columns."""
        size, position = self._plan.batch_size, self._next[lane]
        while sum(len(part["position"]) for part in self._buffers[lane]) < size:
            block = next(self._blocks)
            owner = int(block["lane"][0])
            keep = block["position"] >= self._next[owner]
            if keep.any():
                self._buffers[owner].append(block if keep.all() else {name: c[keep] for name, c in block.items()})
        parts = self._buffers[lane]
        columns = {name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]}
        if columns["position"][0] != position:
            raise RuntimeError(f"lane {lane} delivered position {columns['position'][0]}, planned {position}")
        rest = {name: column[size:] for name, column in columns.items()}
        self._buffers[lane] = [rest] if len(rest["position"]) else []
        self._next[lane] = position + size
        return {name: column[:size] for name, column in columns.items()}


def _chunks(windows: list[Window]) -> Iterator[list[Window]]:
    """Yield runs of windows with about `SAMPLES_PER_DATASET` samples each."""
    chunk: list[Window] = []
    for window in windows:
        chunk.append(window)
        if sum(len(w.samples) for w in chunk) >= SAMPLES_PER_DATASET:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def tile_times(catalog: Any) -> dict[str, dict[tuple[str, int], float]]:
    """Return sensor -> (shard, row) -> days since 1970-01-01, NaN where unknown."""
    days = (catalog["time"] - pd.Timestamp(0, tz="UTC")).dt.total_seconds() / 86_400
    result: dict[str, dict[tuple[str, int], float]] = defaultdict(dict)
    for sensor, shard, row, day in zip(catalog["sensor"], catalog["shard"], catalog["row"], days):
        result[sensor][str(shard), int(row)] = float(day)
    return dict(result)
