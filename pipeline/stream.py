"""Ray Data streams the plan's samples to one rank, which makes micro-batches of them in physical units.

One read task per lane window; a dataset takes the next few windows that the steps of a sensor set need, and is drained
at once while the one before it is trained on. What travels is decided by `decode`: 'cpu_nodes' decodes in the read
tasks, blocks carry stored integers; 'trainer' only looks samples up there, and the rank's own threads read and decode;
'process' does all of it here and needs no Ray. All give the same micro-batches, bit by bit. The first samples of a stream are
looked up and decoded here, while Ray Data begins with what comes after them; not where 'cpu_nodes' decode what lies in a bucket.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import dropwhile, islice, pairwise, takewhile
from typing import Any, Literal

import numpy as np
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata

from pipeline import storage
from pipeline.ahead import run_ahead
from pipeline.augment import AugmentConfig, SensorArrays, augment
from pipeline.crops import MultiCrop, cut
from pipeline.errors import InputError
from pipeline.plan import Plan, SetPlan, Step, Window
from pipeline.samples import SampleSource
from pipeline.views import SensorSet
from pipeline.windows import Columns, OpenShards, resolve

# A dataset left waiting with finished blocks polls without sleeping (Ray 2.60) and takes the interpreter from training:
# three of them made it four times slower. So a dataset is small enough to be drained into memory at once.
SAMPLES_PER_DATASET, BYTES_PER_DATASET = 16_384, 2**28
SAMPLES_IN_FIRST = 512
"""Of each lane and sensor set, with the rest of their window, that do not wait for Ray Data's seconds of a start."""
LOOK_UPS = 8
"""Windows whose samples are looked up at a time at the start: a request for each shard."""
SAMPLES_PER_TASK = 256
"""Windows of very small shards share a read task, those of large shards are several where they can be."""
READ_CPUS = 0.25
STEPS_AHEAD = 3


@dataclass(frozen=True)
class StreamConfig:
    """How samples become micro-batches."""

    decode: Literal["trainer", "cpu_nodes", "process"] = "trainer"
    """Where tiles are decoded: by the trainer's threads, or by Ray tasks on any node; 'process': all in this one, without Ray."""
    threads: int = 2
    """Threads of each worker that decode and augment."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    crops: MultiCrop | None = None
    sizes_m: tuple[float, ...] = ()
    """Sides of the ground that tiles are cut to, one drawn for each step (metres); empty: tiles stay whole."""

    def __post_init__(self) -> None:
        if self.crops and self.sizes_m:
            raise InputError("crops and sizes_m are both set; expected one: crops have sizes of their own")

    @property
    def windows(self) -> list[MultiCrop]:
        """All that is ever cut out of a tile."""
        sizes = [MultiCrop(1, size, 0, size, min(self.sizes_m)) for size in self.sizes_m]
        return [self.crops] if self.crops else sizes


@dataclass(frozen=True)
class MicroBatch:
    """One lane's share of a step.

    `sample` (B,) numbers the samples of the sensor set; `lonlat_deg` (B, 2) is NaN without a CRS. Where there are
    `crops`, they are what is augmented, and `sensors` are the whole tiles as they are.
    """

    step: Step
    lane: int
    sample: np.ndarray
    lonlat_deg: np.ndarray
    sensors: dict[str, SensorArrays]
    crops: tuple[dict[str, SensorArrays], ...] = ()
    features: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Of each sensor the stages (B, T, D, y, x) float16 that are kept beside its tiles, where they are wanted."""


class Stream:
    """What one rank reads from step `start` to `stop`. Iterating gives, per step, the micro-batches of its lanes."""

    def __init__(self, source: SampleSource, plan: Plan, rank: int, world_size: int, start: int, stop: int, config: StreamConfig):
        self._source, self._plan, self._config = source, plan, config
        self._rank, self._world_size = rank, world_size
        self._start, self._stop = start, stop

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        if self._config.decode != "process":
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = False
            context.execution_options.preserve_order = True
        with ThreadPoolExecutor(self._config.threads, "micro-batch") as makers:
            for futures in run_ahead(self._begun(makers), STEPS_AHEAD):
                yield [future.result() for future in futures]

    def _begun(self, makers: Executor) -> Iterator[list[Future[MicroBatch]]]:
        """Yield the micro-batches of each step while they are being made."""
        # One thread, so that only one dataset runs at a time.
        with ThreadPoolExecutor(1, "read-ahead") as pool:
            readers = [self._reader(number, pool) for number in range(len(self._plan.sets))]
            for step in self._plan.steps(self._start, self._stop):
                reader = readers[step.sensor_set]
                parts = [(lane, reader.take(lane)) for lane in reader.lanes]
                yield [makers.submit(self._make, step, lane, part) for lane, part in parts]

    def _reader(self, number: int, pool: Executor) -> "_SetReader":
        lanes = self._plan.lanes_of(self._rank, self._world_size, number)
        batches = range(self._plan.taken(self._start)[number], self._plan.taken(self._stop)[number])
        return _SetReader(self._source, self._plan.sets[number], self._config, lanes, batches, pool)

    def _make(self, step: Step, lane: int, parts: "list[_Part]") -> MicroBatch:
        return collate(self._source, self._plan.sets[step.sensor_set], step, lane, [p.columns() for p in parts], self._config)


def collate(source: SampleSource, plan: SetPlan, step: Step, lane: int, parts: list[Columns], config: StreamConfig) -> MicroBatch:
    """Return columns with pixels as a micro-batch in physical units, augmented by what (seed, step, lane) gives."""
    columns = {name: np.concatenate([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]}
    sensors = {}
    for name in plan.sensor_set:
        sensor, is_present = source.archive.sensors[name], columns[f"{name}/row"] >= 0
        pixels, is_valid = sensor.to_physical(columns[f"{name}/pixels"]), columns[f"{name}/valid"] > 0
        sensors[name] = SensorArrays(sensor, pixels, is_valid, is_present, columns[f"{name}/time"])
    features = {
        name: [columns[key] for key in sorted(columns) if key.startswith(f"{name}/stage")]
        for name in (plan.sensor_set if source.archive.features_url else ())
    }
    sample, rng = plan.first[columns["shard"]] + columns["number"], np.random.default_rng([plan.seed, step.step, lane])
    if config.sizes_m:
        # Drawn for the step, not the lane: every rank's tensors have the same shapes.
        chosen = config.windows[int(np.random.default_rng([plan.seed, step.step]).integers(len(config.windows)))]
        (corner,) = chosen.corners(len(sample), source.archive.grid.site_size_m, rng)
        sensors = {name: cut(arrays, corner, chosen.global_m) for name, arrays in sensors.items()}
    if config.crops is None:
        return MicroBatch(step, lane, sample, columns["lonlat"], augment(sensors, config.augment, rng), features=features)
    corners = config.crops.corners(len(sample), source.archive.grid.site_size_m, rng)
    windows = [{n: cut(a, c, size) for n, a in sensors.items()} for c, size in zip(corners, config.crops.sizes_m)]
    changes = [config.augment.geometry if i < config.crops.num_plain else config.augment for i in range(len(windows))]
    crops = tuple(augment(window, change, rng) for window, change in zip(windows, changes))
    return MicroBatch(step, lane, sample, columns["lonlat"], sensors, crops)


class _Chunk:
    """Consecutive samples of one lane, with their pixels, or with the shards from which they are decoded when wanted.

    Shards stay open as long as somebody holds the chunk.
    """

    def __init__(self, columns: Columns):
        self.columns = columns
        self.lane, self.start = int(columns["lane"][0]), int(columns["position"][0])
        self.stop = self.start + len(columns["position"])
        self.shards: Future[OpenShards] | None = None


@dataclass(frozen=True)
class _Part:
    """Samples [start, stop) of a chunk, in positions of the lane."""

    chunk: _Chunk
    start: int
    stop: int

    def columns(self) -> Columns:
        """Return their columns, pixels among them."""
        inside = slice(self.start - self.chunk.start, self.stop - self.chunk.start)
        columns = {name: column[inside] for name, column in self.chunk.columns.items()}
        return self.chunk.shards.result().decode(columns) if self.chunk.shards else columns


class _SetReader:
    """The samples of one sensor set for the lanes of one rank, regrouped from chunks into micro-batches `batches`."""

    def __init__(
        self,
        source: SampleSource,
        plan: SetPlan,
        config: StreamConfig,
        lanes: list[int],
        batches: range,
        pool: Executor,
    ):
        self._source, self._plan, self._config, self._pool = source, plan, config, pool
        self._openers = ThreadPoolExecutor(1, "open-ahead")
        self.lanes = lanes
        self._waiting: dict[int, deque[_Chunk]] = {lane: deque() for lane in lanes}
        self._next = dict.fromkeys(lanes, batches.start * plan.batch_size)
        self._chunks = self._read(batches.start * plan.batch_size, batches.stop * plan.batch_size)

    def take(self, lane: int) -> list[_Part]:
        """Return the lane's next micro-batch as parts of chunks."""
        position, parts = self._next[lane], []
        stop = position + self._plan.batch_size
        while position < stop:
            while not self._waiting[lane]:
                chunk = next(self._chunks)
                self._waiting[chunk.lane].append(chunk)
            chunk = self._waiting[lane][0]
            if not chunk.start <= position < chunk.stop:
                raise RuntimeError(f"lane {lane} delivered positions {chunk.start} to {chunk.stop}, planned {position}")
            for soon in islice(self._waiting[lane], 2):  # the next one is opened while this one is read
                self._open(soon)
            parts.append(_Part(chunk, position, min(stop, chunk.stop)))
            position = parts[-1].stop
            if position == chunk.stop:
                self._waiting[lane].popleft()
        self._next[lane] = stop
        return parts

    def _open(self, chunk: _Chunk) -> None:
        has_pixels = f"{self._plan.sensor_set[0]}/pixels" in chunk.columns
        if not has_pixels and chunk.shards is None:
            shards = names(self._plan, chunk.columns["shard"])
            chunk.shards = self._openers.submit(OpenShards, self._source.archive, self._plan.sensor_set, shards)

    def _read(self, start: int, stop: int) -> Iterator[_Chunk]:
        begun = start if self._is_all_for_others() else start + SAMPLES_IN_FIRST

        def is_first(window: Window) -> bool:
            return window.start < begun

        first = self._merged(takewhile(is_first, self._pieces(lane, start, stop)) for lane in self.lanes)
        later = self._merged(dropwhile(is_first, self._pieces(lane, start, stop)) for lane in self.lanes)
        groups = _groups(later, SAMPLES_IN_FIRST, self._samples_per_dataset())
        drained = (self._pool.submit(self._drain, group) for group in groups)
        coming = next(drained, None)
        with ThreadPoolExecutor(LOOK_UPS, "look-up") as several:
            yield from several.map(self._look_up, first)
        while coming:
            current, coming = coming, next(drained, None)
            yield from current.result()

    def _merged(self, lanes: Iterable[Iterator[Window]]) -> Iterator[Window]:
        """Yield the windows of all lanes in the order of first need, so that what is read ahead stays small."""
        return heapq.merge(*lanes, key=lambda w: (w.start // self._plan.batch_size, w.lane))

    def _pieces(self, lane: int, start: int, stop: int) -> Iterator[Window]:
        """Yield what a lane's windows hold of `start` to `stop`, in pieces where that bounds what is decoded ahead and no shard is

        fetched twice for it.
        """
        is_cut = self._config.decode == "cpu_nodes" and storage.is_local(self._source.archive.url)
        for window in takewhile(lambda w: w.start < stop, self._plan.windows(lane, start)):
            inside = window.between(start, stop)
            yield from inside.pieces(SAMPLES_PER_TASK) if is_cut else [inside]

    def _is_all_for_others(self) -> bool:
        """Return whether even the first shards are too large to be fetched and decoded here: those of a bucket come whole."""
        return self._config.decode == "cpu_nodes" and not storage.is_local(self._source.archive.url)

    def _samples_per_dataset(self) -> int:
        if self._config.decode != "cpu_nodes":
            return SAMPLES_PER_DATASET
        archive, bytes_per_date = self._source.archive, 0
        for sensor in (archive.sensors[name] for name in self._plan.sensor_set):
            y, x = sensor.tile_shape(archive.grid.site_size_m)
            bytes_per_date += y * x * (len(sensor.bands) * np.dtype(sensor.dtype).itemsize + 1)
        return max(1, BYTES_PER_DATASET // (bytes_per_date * self._source.view.num_dates))

    def _look_up(self, window: Window) -> _Chunk:
        return _Chunk(resolve(self._source, self._plan.sensor_set, window, names(self._plan, window.shard)))

    def _drain(self, windows: list[Window]) -> list[_Chunk]:
        if self._config.decode == "process":
            return [self._look_up(window) for window in windows]
        tasks = list(_groups(windows, SAMPLES_PER_TASK, SAMPLES_PER_TASK))
        dataset = ray.data.read_datasource(
            _WindowSource(self._source, self._plan, self._config.decode, tasks),
            override_num_blocks=len(tasks),
            num_cpus=READ_CPUS,
        )
        blocks = dataset.iter_batches(batch_size=None, batch_format="numpy")
        return [chunk for columns in blocks for chunk in _chunks(columns)]


class _WindowSource(Datasource):
    """A finite run of windows as a Ray Data source: a read task for each group of them."""

    def __init__(self, source: SampleSource, plan: SetPlan, decode: str, tasks: list[list[Window]]):
        super().__init__()
        self._plan, self._decode, self._tasks, self._shared = plan, decode, tasks, ray.put(source)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[ReadTask]:
        return [self._task([(window, names(self._plan, window.shard)) for window in windows]) for windows in self._tasks]

    def _task(self, windows: list[tuple[Window, dict[int, str]]]) -> ReadTask:
        shared, sensor_set, read = self._shared, self._plan.sensor_set, _decoded if self._decode == "cpu_nodes" else _resolved

        def run() -> Iterable[Block]:
            source = ray.get(shared)
            with storage.patient():
                for window, shards in windows:
                    for columns in read(source, sensor_set, window, shards):
                        yield BlockAccessor.batch_to_block(columns)

        num_rows = sum(len(window.number) for window, _ in windows)
        return ReadTask(run, BlockMetadata(num_rows=num_rows, size_bytes=None, input_files=None, exec_stats=None))


def _resolved(source: SampleSource, sensor_set: SensorSet, window: Window, shards: dict[int, str]) -> Iterator[Columns]:
    yield resolve(source, sensor_set, window, shards)


def _decoded(source: SampleSource, sensor_set: SensorSet, window: Window, shards: dict[int, str]) -> Iterator[Columns]:
    columns = resolve(source, sensor_set, window, shards)
    with closing(OpenShards(source.archive, sensor_set, shards)) as opened:
        for first in range(0, len(window.number), SAMPLES_PER_TASK):
            yield opened.decode({name: column[first : first + SAMPLES_PER_TASK] for name, column in columns.items()})


def _chunks(columns: Columns) -> list[_Chunk]:
    """Return the runs of one lane's consecutive samples in a block, of which Ray Data may join several."""
    ends = np.flatnonzero((np.diff(columns["lane"]) != 0) | (np.diff(columns["position"]) != 1)) + 1
    bounds = [0, *ends.tolist(), len(columns["lane"])]
    return [_Chunk({name: column[a:b] for name, column in columns.items()}) for a, b in pairwise(bounds)]


def names(plan: SetPlan, shard: np.ndarray) -> dict[int, str]:
    """Return the names of shards by their place in the plan."""
    return {place: plan.shards[place] for place in np.unique(shard).tolist()}


def _groups(windows: Iterable[Window], first: int, most: int) -> Iterator[list[Window]]:
    """Yield runs of windows with about `first` samples, then twice as many each time up to `most`."""
    group: list[Window] = []
    for window in windows:
        group.append(window)
        if sum(len(w.number) for w in group) >= first:
            yield group
            group, first = [], min(2 * first, most)
    if group:
        yield group
