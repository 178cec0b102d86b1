"""Pairs of simulated scenes with known displacement, for the registration benchmark and its calibration."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from pipeline.coregister import read_structure
from pipeline.scan import scan
from pipeline.simulate import SimulateConfig, simulate
from pipeline.stac import read_scenes, write_catalog

GSD_M = 10.0
SEARCHES_PX = (6.0, 12.0, 40.0)


@dataclass(frozen=True)
class Pair:
    """One block of a Sentinel-2 scene and one of another scene; `shift` (dy, dx) px, None: they show different ground."""

    sensor: str
    reference: np.ndarray
    moving: np.ndarray
    reference_valid: np.ndarray
    moving_valid: np.ndarray
    shift: np.ndarray | None
    search_px: float


def planet_pairs(seed: int, block_px: int, size_m: int = 15360, every: int = 1) -> Iterator[Pair]:
    """Yield each chosen block twice: with the same ground of the other scene, and with other ground of it."""
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder), SimulateConfig(seed=seed, size_m=size_m))
        items, _ = scan(f"{folder}/scenes")
        write_catalog(items, f"{folder}/scenes/scenes.json")
        truth = json.loads((Path(folder) / "truth" / "scenes.json").read_text())
        summary = json.loads((Path(folder) / "simulate.json").read_text())["summary"]
        grid = GeoBox.from_bbox(summary["bounds_m"], summary["crs"], resolution=GSD_M)
        images = {s.id: read_structure(s, grid) for s in read_scenes(f"{folder}/scenes")[0]}
    generator = np.random.default_rng(seed)
    places = [
        (i, j) for i in range(0, grid.shape.y - block_px + 1, block_px) for j in range(0, grid.shape.x - block_px + 1, block_px)
    ]
    chosen = [(a, b, p) for a in images if a.startswith("sentinel2") for b in images if a != b for p in places]
    for a, b, (i, j) in (chosen[k] for k in generator.permutation(len(chosen))[: len(chosen) // every]):
        here = slice(i, i + block_px), slice(j, j + block_px)
        (fixed, fixed_valid), (moving, moving_valid) = images[a], images[b]
        if (fixed_valid[here] & moving_valid[here]).mean() < 0.5:
            continue
        shift = np.array([truth[b]["shift_y_m"] - truth[a]["shift_y_m"], truth[a]["shift_x_m"] - truth[b]["shift_x_m"]]) / GSD_M
        elsewhere = [
            (y, x) for y, x in places if (y, x) != (i, j) and moving_valid[y : y + block_px, x : x + block_px].mean() > 0.5
        ]
        search = float(generator.choice(SEARCHES_PX))
        sensor = b.split("_2")[0]
        yield Pair(sensor, fixed[:, *here], moving[:, *here], fixed_valid[here], moving_valid[here], shift, search)
        if elsewhere:
            y, x = elsewhere[generator.integers(len(elsewhere))]
            there = slice(y, y + block_px), slice(x, x + block_px)
            yield Pair(sensor, fixed[:, *here], moving[:, *there], fixed_valid[here], moving_valid[there], None, search)
