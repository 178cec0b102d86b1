"""From a window of the plan to its pixels, in two steps that may run on different machines.

`resolve` says which tiles the samples are made of (catalog rows, no pixels); `OpenShards` decodes the pixels of any of
them. Columns are arrays with one entry a sample: what a block of Ray Data is made of.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from pipeline import reader, storage
from pipeline.archive import Archive
from pipeline.errors import InputError
from pipeline.features import describe, stage_name
from pipeline.plan import Window
from pipeline.reader import TileArray
from pipeline.samples import SampleSource
from pipeline.views import SensorSet

Columns = dict[str, np.ndarray]
_openers = ThreadPoolExecutor(8, "open")  # an object store answers many requests at a time


def resolve(source: SampleSource, sensor_set: SensorSet, window: Window, shards: dict[int, str]) -> Columns:
    """Return what there is to know of the window's samples before pixels are read.

    lane, position, shard, number (N,); lonlat (N, 2); <sensor>/row and <sensor>/time (N, T), as in `views.Samples`.
    `shards` names the window's shards by their place in the plan.
    """
    size = len(window.number)
    columns = {
        "lane": np.full(size, window.lane),
        "position": window.start + np.arange(size),
        "shard": window.shard,
        "number": window.number,
        "lonlat": np.empty((size, 2)),
    }
    for place in np.unique(window.shard).tolist():
        samples, here = source.of_shard(shards[place], sensor_set), np.flatnonzero(window.shard == place)
        number = window.number[here]
        if number.max() >= len(samples):
            raise InputError(f"shard '{shards[place]}' of '{source.archive.url}' has changed since the run began; start a new run")
        columns["lonlat"][here] = samples.lonlat_deg[number]
        for name in sensor_set:
            for kind, values in (("row", samples.rows[name]), ("time", samples.time_days[name])):
                column = columns.setdefault(f"{name}/{kind}", np.empty((size, values.shape[1]), values.dtype))
                column[here] = values[number]
    return columns


class OpenShards:
    """The pixels and validity of some shards, open for any number of threads. `shards` are names by place in the plan.

    So are the features beside them, where the archive says that they are wanted.
    """

    def __init__(self, archive: Archive, sensor_set: SensorSet, shards: dict[int, str]):
        self._archive, self._sensor_set = archive, sensor_set
        self._stack, self._lock = ExitStack(), threading.Lock()
        stages = describe(archive.features_url)["stages"] if archive.features_url else 0
        self._stages = [stage_name(stage) for stage in range(stages)]
        wanted = [(place, name, kind) for place in shards for name in sensor_set for kind in ("pixels", "valid", *self._stages)]
        self._arrays = dict(zip(wanted, _openers.map(lambda key: self._open(shards[key[0]], *key[1:]), wanted)))

    def _open(self, shard: str, sensor: str, kind: str) -> TileArray | None:
        """Return one array; None where a shard has no tile of the sensor (a view that masks absent ones wants none)."""
        try:
            is_feature = kind in self._stages
            folder = storage.join(self._archive.features_url, shard) if is_feature else self._archive.shard_url(shard)
            array = reader.opened(storage.join(folder, sensor, kind))
            entered = array.__enter__()
        except FileNotFoundError:
            return None
        with self._lock:
            self._stack.push(array)
        return entered

    def close(self) -> None:
        with self._lock:
            self._stack.close()

    def decode(self, columns: Columns) -> Columns:
        """Return the columns of samples with <sensor>/pixels (N, T, C, Y, X) as stored and <sensor>/valid (N, T, Y, X) uint8.

        Both are 0 where a tile is absent, as are <sensor>/stage0 ... (N, T, D, y, x) float16, if features are wanted.
        """
        columns = dict(columns)
        for name in self._sensor_set:
            columns[f"{name}/pixels"], columns[f"{name}/valid"] = self._decode(columns, name)
            columns |= {f"{name}/{stage}": self._features(columns, name, stage) for stage in self._stages}
        return columns

    def _decode(self, columns: Columns, sensor: str) -> tuple[np.ndarray, np.ndarray]:
        definition, rows = self._archive.sensors[sensor], columns[f"{sensor}/row"]
        shape = definition.tile_shape(self._archive.grid.site_size_m)
        pixels = np.empty((*rows.shape, len(definition.bands), *shape), definition.dtype)
        is_valid = np.empty((*rows.shape, *shape), np.uint8)
        pixels[rows < 0], is_valid[rows < 0] = 0, 0
        for place in np.unique(columns["shard"]).tolist():
            at = np.argwhere((columns["shard"] == place)[:, None] & (rows >= 0))
            if len(at):
                self._fill(self._array(place, sensor, "pixels"), rows, at, pixels)
                self._fill(self._array(place, sensor, "valid"), rows, at, is_valid)
        return pixels, is_valid

    def _features(self, columns: Columns, sensor: str, stage: str) -> np.ndarray:
        rows, found = columns[f"{sensor}/row"], None
        for place in np.unique(columns["shard"]).tolist():
            at = np.argwhere((columns["shard"] == place)[:, None] & (rows >= 0))
            if len(at):
                array = self._array(place, sensor, stage)
                found = np.zeros((*rows.shape, *array.shape[1:]), array.dtype) if found is None else found
                self._fill(array, rows, at, found)
        if found is None:
            raise InputError(f"no sample of a micro-batch has a tile of {sensor}, whose features are wanted; use another view")
        return found

    def _array(self, place: int, sensor: str, kind: str) -> TileArray:
        array = self._arrays[place, sensor, kind]
        if array is None:
            raise InputError(f"a shard of '{self._archive.url}' has no {kind} of {sensor} any more; start a new run")
        return array

    def _fill(self, array: TileArray, rows: np.ndarray, at: np.ndarray, out: np.ndarray) -> None:
        """Decode each tile once, in the order in which they are stored, to the places `at` (., 2) of (N, T)."""
        targets = [out[sample, date] for sample, date in at.tolist()]
        unique, first, which = np.unique(rows[at[:, 0], at[:, 1]], return_index=True, return_inverse=True)
        array.decode(unique, [targets[place] for place in first.tolist()])
        for place, original in enumerate(first[which].tolist()):
            if place != original:
                targets[place][...] = targets[original]
