"""Embed an image of any size and see what it takes: `python -m tests.bench.bench_embed SCENES MODEL_RUN --work DIR [--side-m 102400]`.

The first scene of each sensor in SCENES is mirrored until it covers the ground asked for; `terraloom embed` then maps all sensors that
the model knows. Told are seconds with Ray's start, the most resident memory of the command and of its largest worker, and bytes
written.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from pipeline.part import USER_MASK
from pipeline.sensors import load_sensor

CRS, CORNER_M = "EPSG:32632", (600_000.0, 5_300_000.0)
"""Of all images: their own reference systems differ."""
ROWS = 1024
MIB = 2.0**20


def mirrored(length: int, wanted: int) -> np.ndarray:
    """Return places 0 ... length - 1, back, and forth again, `wanted` of them."""
    return np.resize(np.concatenate([np.arange(length), np.arange(length)[::-1]]), wanted)


def enlarge(source: Path, path: Path, side_m: float) -> None:
    """Write `source` to `path`, mirrored to `side_m` by `side_m`, with all that the file says of itself but where it is."""
    with rasterio.open(source) as scene:
        gsd_m = load_sensor(scene.tags()["SENSOR"]).gsd_m
        image, side = scene.read(), round(side_m / gsd_m)
        tiled = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "zstd", "bigtiff": "yes"}
        place = {"crs": CRS, "transform": from_origin(*CORNER_M, gsd_m, gsd_m), "width": side, "height": side}
        profile = scene.profile | tiled | place | {"driver": "GTiff"}
        rows, columns = mirrored(scene.height, side), mirrored(scene.width, side)
        with rasterio.open(path, "w", **profile) as large:
            large.update_tags(**scene.tags())
            large.descriptions, large.scales, large.offsets = scene.descriptions, scene.scales, scene.offsets
            for first in range(0, side, ROWS):
                part = rows[first : first + ROWS]
                large.write(image[:, part][:, :, columns], window=Window(0, first, side, len(part)))


class Watched:
    """The most resident memory of a process, and of the largest of those below it."""

    def __init__(self, process: psutil.Process) -> None:
        self.own = self.largest = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(process,), daemon=True)
        self._thread.start()

    def _watch(self, process: psutil.Process) -> None:
        while not self._ended.wait(0.5):
            try:
                self.own = max(self.own, process.memory_info().rss)
                below = process.children(recursive=True)
            except psutil.NoSuchProcess:
                return
            for one in below:
                try:
                    self.largest = max(self.largest, one.memory_info().rss)
                except psutil.NoSuchProcess:  # it has just ended
                    continue

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("model")
    parser.add_argument("--side-m", type=float, default=102_400.0)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for images and maps")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of terraloom embed")
    options = parser.parse_args()
    large = options.work / "images"
    large.mkdir(parents=True)
    first = {
        path.name.split("_2")[0]: path
        for path in sorted(options.scenes.glob("*.tif"), reverse=True)
        if not path.stem.endswith(USER_MASK)
    }
    for path in first.values():
        enlarge(path, large / path.name, options.side_m)
        print(f"{path.name}: {(large / path.name).stat().st_size / MIB:.0f} MiB", flush=True)
    command = [sys.executable, "-m", "jobs.cli", "embed", options.model, str(large), str(options.work / "maps"), "--json"]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, *options.options], stdout=subprocess.PIPE, text=True)
    watched = Watched(psutil.Process(process.pid))
    said, _ = process.communicate()
    taken = time.perf_counter() - begin
    watched.end()
    if process.returncode:
        raise SystemExit(f"terraloom embed ended with {process.returncode}")
    summary = json.loads(said.splitlines()[-1])
    written = sum(path.stat().st_size for path in (options.work / "maps").rglob("*") if path.is_file())
    print(
        "| sensors | cells | blocks, cells a side | s | command, MiB | largest worker, MiB | written, MiB |\n|---|---|---|---|---|---|---|"
    )
    blocks = ", ".join(f"{name} {side}" for name, side in summary["block_cells"].items())
    print(
        f"| {len(summary['sensors'])} | {' x '.join(map(str, summary['shape']))} | {blocks} | {taken:.0f} | {watched.own / MIB:.0f} "
        f"| {watched.largest / MIB:.0f} | {written / MIB:.0f} |"
    )


if __name__ == "__main__":
    main()
