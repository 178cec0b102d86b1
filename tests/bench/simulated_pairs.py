"""Pairs of simulated scenes with known displacement, for the registration benchmark and its calibration."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from pipeline.coregister import read_structure
from pipeline.scan import scan
from pipeline.simulation.config import SimulateConfig
from pipeline.simulation.planet import noise
from pipeline.simulation.simulate import simulate
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


def spoiled(pair: Pair, generator: np.random.Generator) -> Iterator[tuple[str, Pair]]:
    """Yield pairs of which one shows no ground, as no mask says: they must stay where they are."""
    shape = pair.moving.shape
    low, spread = pair.reference.min(), np.ptp(pair.reference)
    clouds = [low + spread * (1 + 0.3 * noise(generator, shape[1:], wave)) for wave in (shape[1] / 2, shape[1] / 8)]
    ramp = np.linspace(0, spread, shape[2], dtype=np.float32)
    grain = generator.normal(0, 0.002 * spread, shape).astype(np.float32)
    moving = {
        "thick cloud": np.broadcast_to(clouds[0], shape) + grain,
        "broken cloud": np.broadcast_to(clouds[1], shape) + grain,
        "flat": np.full(shape, low + spread / 2, np.float32),
        "flat with noise": low + spread / 2 + grain,
        "haze": low + np.broadcast_to(ramp, shape) + grain,
    }
    seen = np.ones(shape[1:], bool)
    for kind, image in moving.items():
        yield kind, replace(pair, moving=image.astype(np.float32), moving_valid=seen, shift=None)
    other = [low + spread * (1 + 0.3 * noise(generator, shape[1:], shape[1] / 8)) for _ in range(2)]
    both = [np.stack([image] * shape[0]).astype(np.float32) for image in other]
    yield "cloud over both", replace(pair, reference=both[0], moving=both[1], reference_valid=seen, moving_valid=seen, shift=None)
    yield "noise in both", replace(pair, reference=grain, moving=grain[:, ::-1, ::-1].copy(), moving_valid=seen, shift=None)


def half_hidden(pair: Pair, share: float, generator: np.random.Generator) -> Pair:
    """Return the pair with cloud, told by no mask, over `share` of the moving image."""
    where = noise(generator, pair.moving.shape[1:], pair.moving.shape[1] / 3)
    is_cloud = where > np.quantile(where, 1 - share)
    cloud = pair.reference.min() + np.ptp(pair.reference) * (1 + 0.3 * noise(generator, where.shape, where.shape[0] / 6))
    return replace(pair, moving=np.where(is_cloud, cloud, pair.moving).astype(np.float32))
