"""Co-registration of full-size scenes: time and memory of the job, beside a bare GDAL warp of the same pixels.

`python -m tests.bench.bench_bulk`: two dates of a Sentinel-2-like scene of 10980 x 10980 px (made once, kept in --folder),
the whole job with two Ray workers, then in turn the building of all tiles and `rasterio.warp.reproject` in two processes
with GDAL's own settings, from the same files onto the same pixels by the same shift.
"""

import argparse
import functools
import multiprocessing
import operator
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import rasterio
import rasterio.warp
import ray
from affine import Affine
from numcodecs.blosc import Blosc
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from jobs.coregister import coregister
from jobs.registration_report import read_reports
from pipeline.alignment import Alignment, alignment_from_dict
from pipeline.archive import Archive, open_archive
from pipeline.coregister import CoregisterConfig, build_tiles
from pipeline.grid import Grid, ShardCell
from pipeline.scene import Scene
from pipeline.stac import read_scenes
from tests.bench.bulk_scenes import BulkConfig, make_scenes

WORKERS = 2
WINDOW_PX = 2048
RAY_NICENESS = 15
"""Ray's workers give way to other programs; so do the processes that they are compared with."""


class Seconds(NamedTuple):
    building: float
    publishing: float
    blosc: float


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Sample the resident memory of every Ray worker twenty times a second; yield what returns the largest so far, GiB."""
    peak, stopped = [0.0], threading.Event()

    def watch() -> None:
        while not stopped.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::"):
                        peak[0] = max(peak[0], process.memory_info().rss / 2**30)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: peak[0]
    stopped.set()
    thread.join()


@ray.remote(num_cpus=1)
def build(cell: ShardCell, archive: Archive, scenes: list[Scene], alignments: dict[str, Alignment]) -> Seconds:
    """Build a shard's tiles, publish them, and compress their pixels once more for its own share."""
    marks = [time.perf_counter()]
    tiles, refused = build_tiles(cell, archive.grid, scenes, archive.sensors, alignments, [], CoregisterConfig.min_valid_fraction)
    assert not refused, refused
    marks.append(time.perf_counter())
    archive.publish(cell.id, "train", tiles, "benchmark")
    marks.append(time.perf_counter())
    codec = Blosc(cname="zstd", clevel=3, shuffle=Blosc.BITSHUFFLE)
    for tile in tiles:
        codec.encode(np.ascontiguousarray(tile.pixels))
        codec.encode(np.ascontiguousarray(tile.is_valid))
    marks.append(time.perf_counter())
    return Seconds(*np.diff(marks).tolist())


@ray.remote(num_cpus=1)
def build_only(cell: ShardCell, archive: Archive, scenes: list[Scene], alignments: dict[str, Alignment]) -> float:
    """Build a shard's tiles; return the processor's seconds, which other programs on the machine hardly change."""
    begin = time.process_time()
    build_tiles(cell, archive.grid, scenes, archive.sensors, alignments, [], CoregisterConfig.min_valid_fraction)
    return time.process_time() - begin


def on_all(task: Any, archive: Archive, scenes: list[Scene], alignments: dict[str, Alignment]) -> tuple[list[Any], float]:
    """Return what `task` gives for each shard under the scenes, and the seconds that all took."""
    cells = sorted(set().union(*(archive.grid.cells_over(scene.footprint) for scene in scenes)), key=lambda cell: cell.id)
    shared = ray.put(archive), ray.put(scenes), ray.put(alignments)
    begin = time.perf_counter()
    found = ray.get([task.remote(cell, *shared) for cell in cells])
    return found, time.perf_counter() - begin


def warp(path: str, window: GeoBox) -> float:
    """Reproject one window of one file with GDAL's own settings; return the processor's seconds."""
    begin = time.process_time()
    found = np.zeros(window.shape, np.uint16)
    with rasterio.open(path) as source:
        rasterio.warp.reproject(
            rasterio.band(source, 1),
            found,
            dst_transform=window.transform,
            dst_crs=str(window.crs),
            src_nodata=0,
            dst_nodata=0,
            resampling=Resampling.bilinear,
        )
    return time.process_time() - begin


def warp_all(
    pool: ProcessPoolExecutor, grid: Grid, scenes: list[Scene], alignments: dict[str, Alignment]
) -> tuple[float, float, int]:
    """Warp every band of every scene onto the shards' pixels; return seconds, the processors' seconds, number of pixels."""
    tasks = []
    for scene in scenes:
        bounds = [grid.shard_bounds(cell) for cell in grid.cells_over(scene.footprint)]
        whole = GeoBox.from_bbox(functools.reduce(operator.or_, bounds), resolution=scene.sensor.gsd_m, tight=True)
        (x,), (y,) = alignments[scene.id].stated(np.zeros(1), np.zeros(1), whole.crs)
        moved = GeoBox(whole.shape, Affine.translation(x, y) @ whole.transform, whole.crs)
        rows, columns = (range(0, n, WINDOW_PX) for n in whole.shape)
        windows = [moved[i : i + WINDOW_PX, j : j + WINDOW_PX] for i in rows for j in columns]
        tasks += [(asset.href, window) for asset in scene.assets for window in windows]
    begin = time.perf_counter()
    busy = sum(pool.map(warp, *zip(*tasks), chunksize=4))
    return time.perf_counter() - begin, busy, sum(window.shape.x * window.shape.y for _, window in tasks)


def whole_job(catalog: Path, archive: Path, grid: Grid) -> None:
    """Run the job, and print its time and the peak of its workers' memory."""
    with peak_memory() as peak_gib:
        begin = time.perf_counter()
        summary = coregister(str(catalog), str(archive), grid, CoregisterConfig(), None)
        seconds = time.perf_counter() - begin
    print(
        f"job: {seconds:.0f} s, {summary['shards']} shards, tiles {summary['tiles']}, peak of a worker {peak_gib():.2f} GiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "terraloom-bulk")
    parser.add_argument("--size-px", type=int, default=10980)
    parser.add_argument("--shard-sites", type=int, default=16)
    parser.add_argument("--jpeg2000", action="store_true", help="scenes as JPEG 2000 (written slowly) instead of deflated COGs")
    parser.add_argument("--repeat", type=int, default=2, help="times that building and bare warp are timed in turn")
    parser.add_argument("--skip-job", action="store_true", help="take the archive that the last run left in --folder")
    arguments = parser.parse_args()
    config = BulkConfig(arguments.size_px, driver="JP2OpenJPEG" if arguments.jpeg2000 else "COG")
    folder = arguments.folder / f"{config.size_px}-{config.driver}-{config.compress}"
    make_scenes(folder, config)
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    scenes, _ = read_scenes(str(folder))
    url = arguments.folder / "archive"
    if not arguments.skip_job:
        shutil.rmtree(url, ignore_errors=True)
        whole_job(folder, url, Grid(shard_sites=arguments.shard_sites))
    archive = open_archive(str(url))
    found = read_reports(archive)["scenes"]
    alignments = {name: alignment_from_dict(record["displacement"]) for name, record in found.items()}
    for record in found.values():
        print(f"  moved by {record['shift_x_m']:+.2f}, {record['shift_y_m']:+.2f} m: {record['reason']}")
    down, right = config.shift_px
    print(f"  the truth of the second date: {-10 * right:+.2f}, {10 * down:+.2f} m")
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"), os.nice, (RAY_NICENESS,)) as pool:
        for _ in range(arguments.repeat):
            bare, bare_busy, pixels = warp_all(pool, archive.grid, scenes, alignments)
            busy, built = on_all(build_only, archive, scenes, alignments)
            print(
                f"{pixels / 1e9:.2f} Gpx: tiles built in {built:.1f} s, {sum(busy):.1f} s of processors; bare GDAL warp {bare:.1f} s,"
                f" {bare_busy:.1f} s: {bare / built:.0%}, {bare_busy / sum(busy):.0%} of its speed",
                flush=True,
            )
    parts, _ = on_all(build, archive, scenes, alignments)
    total = Seconds(*np.sum(parts, axis=0))
    print(
        f"both workers' seconds: building {total.building:.0f}, publishing {total.publishing:.0f}, of which Blosc {total.blosc:.0f}"
    )
    print(f"{sum(os.path.getsize(p) for p in url.rglob('*') if p.is_file()) / 2**20:.0f} MiB in {len(parts)} shards")


if __name__ == "__main__":
    main()
