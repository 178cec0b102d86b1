"""Other ways to store and load the tiles of an archive, each with the compression that suits it, as datasets of batches.

Each is an IterableDataset of ready batches, of which every worker process gives its share: sensor -> (pixels (B, C, Y, X)
float32 in physical units, validity (B, Y, X) bool). Whatever a peer offers to go faster is used: whole batches cross
processes, files are read in order, shuffling is left out.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs.blosc import Blosc
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.archive import Archive
from pipeline.augment import AugmentConfig
from pipeline.plan import SetPlan, Step
from pipeline.samples import SampleSource
from pipeline.sensors import Sensor
from pipeline.stream import StreamConfig, collate, names
from pipeline.windows import OpenShards, resolve
from tests.bench.calibrated_tiles import SENSORS

AS_IS = AugmentConfig(symmetries=False)
CODEC = {"cname": "zstd", "clevel": 3, "shuffle": Blosc.BITSHUFFLE}
Batch = dict[str, tuple[torch.Tensor, torch.Tensor]]
Tiles = dict[str, tuple[np.ndarray, np.ndarray]]


def to_batch(sensors: dict[str, Sensor], tiles: list[Tiles]) -> Batch:
    """Return tiles as stored as a batch in physical units."""
    found = {}
    for name in SENSORS:
        pixels, is_valid = (np.stack([tile[name][part] for tile in tiles]) for part in (0, 1))
        found[name] = torch.from_numpy(sensors[name].to_physical(pixels)), torch.from_numpy(is_valid > 0)
    return found


def share(items: list[Any]) -> list[Any]:
    """Return what the calling worker process has to do of `items`, for ever again if there is little."""
    info = get_worker_info()
    return items[info.id :: info.num_workers] if info else items


def all_tiles(archive: Archive) -> Iterator[tuple[str, int, Tiles]]:
    """Yield (shard, row, tiles of both sensors); in the benchmark's archive a site has the same row in both."""
    for shard in archive.published():
        read = {name: archive.read(shard, name, np.arange(_count(archive, shard, name))) for name in SENSORS}
        for row in range(len(read[SENSORS[0]][0])):
            yield shard, row, {name: (pixels[row], valid[row]) for name, (pixels, valid) in read.items()}


def _count(archive: Archive, shard: str, sensor: str) -> int:
    return int((archive.tiles([shard])["sensor"] == sensor).sum())


class OurReader(IterableDataset):
    """The plan's micro-batches, made by the code that the stream uses, lane by lane in worker processes."""

    def __init__(self, source: SampleSource, plan: SetPlan):
        self._source, self._plan = source, plan

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        (lane,) = share(list(range(self._plan.num_lanes)))
        size = self._plan.batch_size
        for window in self._plan.windows(lane, 0):
            where = names(self._plan, window.shard)
            columns = resolve(self._source, self._plan.sensor_set, window, where)
            with closing(OpenShards(self._source.archive, self._plan.sensor_set, where)) as opened:
                for first in range(0, len(window.number), size):
                    part = opened.decode({name: column[first : first + size] for name, column in columns.items()})
                    micro = collate(self._source, self._plan, Step(0, 0, 0), lane, [part], StreamConfig(augment=AS_IS))
                    yield {
                        n: (torch.from_numpy(a.pixels[:, 0]), torch.from_numpy(a.is_valid[:, 0])) for n, a in micro.sensors.items()
                    }


class ZarrPython(IterableDataset):
    """The archive itself, read by zarr-python one batch after the other."""

    def __init__(self, archive: Archive, folder: Path, batch_size: int):
        self._archive, self._size = archive, batch_size

    def __iter__(self) -> Iterator[Batch]:
        import zarr

        while True:
            for shard in share(self._archive.published()):
                group = zarr.open_group(self._archive.shard_url(shard), mode="r")
                for first in range(0, group[f"{SENSORS[0]}/pixels"].shape[0], self._size):
                    rows, found = slice(first, first + self._size), {}
                    for name in SENSORS:
                        pixels, is_valid = group[f"{name}/pixels"][rows], group[f"{name}/valid"][rows]
                        physical = self._archive.sensors[name].to_physical(pixels)
                        found[name] = torch.from_numpy(physical), torch.from_numpy(is_valid > 0)
                    yield found


class GeoTiff(IterableDataset):
    """A GeoTIFF per tile (zstd with horizontal differences) with an internal mask."""

    def __init__(self, archive: Archive, folder: Path, batch_size: int):
        import rasterio
        from rasterio.transform import from_origin

        self._sensors, self._size = archive.sensors, batch_size
        self._samples: list[dict[str, str]] = []
        os.environ["GDAL_DISABLE_READDIR_ON_OPEN"] = "EMPTY_DIR"
        for shard, row, tiles in all_tiles(archive):
            paths = {}
            for name, (pixels, is_valid) in tiles.items():
                path = folder / shard / f"{row}_{name}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                size = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
                with (
                    rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
                    rasterio.open(
                        path, "w", driver="GTiff", compress="zstd", predictor=2, transform=from_origin(0, 0, 10, 10), **size
                    ) as file,
                ):
                    file.write(pixels)
                    file.write_mask(is_valid > 0)
                paths[name] = str(path)
            self._samples.append(paths)

    def __iter__(self) -> Iterator[Batch]:
        import rasterio

        def read(path: str) -> tuple[np.ndarray, np.ndarray]:
            with rasterio.open(path) as file:
                return file.read(), file.read_masks(1)

        mine = share(self._samples)
        while True:
            for first in range(0, len(mine), self._size):
                yield to_batch(self._sensors, [{n: read(p) for n, p in s.items()} for s in mine[first : first + self._size]])


class WebDataset(IterableDataset):
    """Tar files of samples whose members are arrays, blosc zstd with bitshuffle as in the archive."""

    def __init__(self, archive: Archive, folder: Path, batch_size: int):
        folder.mkdir(parents=True)
        self._sensors, self._size, codec = archive.sensors, batch_size, Blosc(**CODEC)
        self._urls = [str(folder / f"{shard}.tar") for shard in archive.published()]
        for url, (_, samples) in zip(self._urls, groupby(all_tiles(archive), key=lambda item: item[0])):
            with tarfile.open(url, "w") as file:
                for _, row, tiles in samples:
                    for name, arrays in tiles.items():
                        for kind, array in zip(("pixels", "valid"), arrays):
                            content = codec.encode(np.ascontiguousarray(array))
                            member = tarfile.TarInfo(f"{row:06d}.{name}_{kind}")
                            member.size = len(content)
                            file.addfile(member, io.BytesIO(content))
        self._shapes = {name: (pixels.shape, pixels.dtype, valid.dtype) for name, (pixels, valid) in tiles.items()}

    def __iter__(self) -> Iterator[Batch]:
        import webdataset

        codec = Blosc(**CODEC)
        while True:
            waiting: list[Tiles] = []
            for sample in webdataset.WebDataset(share(self._urls), shardshuffle=False, nodesplitter=None, workersplitter=None):
                waiting.append({name: self._tile(codec, sample, name) for name in SENSORS})
                if len(waiting) == self._size:
                    yield to_batch(self._sensors, waiting)
                    waiting = []

    def _tile(self, codec: Blosc, sample: dict[str, bytes], name: str) -> tuple[np.ndarray, np.ndarray]:
        shape, dtype, valid_dtype = self._shapes[name]
        pixels = np.frombuffer(codec.decode(sample[f"{name}_pixels"]), dtype).reshape(shape)
        return pixels, np.frombuffer(codec.decode(sample[f"{name}_valid"]), valid_dtype).reshape(shape[1:])


class LitData(IterableDataset):
    """Chunks that litdata writes and reads, with its own zstd compression."""

    def __init__(self, archive: Archive, folder: Path, batch_size: int):
        from litdata.streaming.writer import BinaryWriter

        folder.mkdir(parents=True)
        self._sensors, self._size, self._folder = archive.sensors, batch_size, str(folder)
        writer = BinaryWriter(self._folder, chunk_bytes="64MB", compression="zstd")
        for index, (_, _, tiles) in enumerate(all_tiles(archive)):
            parts = {
                f"{n}_{kind}": np.ascontiguousarray(a)
                for n, arrays in tiles.items()
                for kind, a in zip(("pixels", "valid"), arrays)
            }
            writer.add_item(index, parts)
        writer.done()
        writer.merge()

    def __iter__(self) -> Iterator[Batch]:
        from litdata import StreamingDataset

        while True:
            waiting: list[Tiles] = []
            for sample in StreamingDataset(self._folder, shuffle=False):  # takes its worker's share by itself
                waiting.append({name: (sample[f"{name}_pixels"], sample[f"{name}_valid"]) for name in SENSORS})
                if len(waiting) == self._size:
                    yield to_batch(self._sensors, waiting)
                    waiting = []
