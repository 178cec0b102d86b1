"""Single Sentinel-2 L2A patches in one `patches.npz`: `image` (N, band, y, x) uint16, `bands`, `id`. No places or dates."""

import functools
from typing import Any

import numpy as np

from pipeline.archive import Tile
from pipeline.chips import cut, require_folder
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor

LABELS: dict[str, Any] = {}
SENSOR = "sentinel2_l2a"


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> list[str]:
    """Return the patch ids; each patch is a place of its own."""
    return sorted(_index(folder))


def tiles(folder: str, place: str, grid: Grid) -> list[Tile]:
    """Return the tiles cut from one patch; a pixel that is zero in every band is no data."""
    size = load_sensor(SENSOR).tile_shape(grid.site_size_m)[0]
    pixels = _images(folder)[_index(folder)[place]]
    is_valid = pixels.max(axis=0) > 0
    return [
        Tile(
            sensor=SENSOR,
            site=f"s2_patches/{place}/{part}",
            pixels=pixels[:, *window],
            is_valid=is_valid[window],
            time=None,
            order=0,
            scene=place,
        )
        for part, window in cut(is_valid.shape, size)
        if is_valid[window].mean() >= 0.3
    ]


@functools.cache
def _images(folder: str) -> np.ndarray:
    """Return `image` with its bands in the sensor's order."""
    content, sensor = _content(folder), load_sensor(SENSOR)
    found = [sensor.band(str(name)).name for name in content["bands"]]
    if sorted(found) != sorted(sensor.band_names):
        raise InputError(f"'{folder}/patches.npz' has bands {found}, expected {', '.join(sensor.band_names)}")
    return content["image"][:, [found.index(name) for name in sensor.band_names]]


@functools.cache
def _index(folder: str) -> dict[str, int]:
    return {str(name): index for index, name in enumerate(_content(folder)["id"])}


@functools.cache
def _content(folder: str) -> dict[str, np.ndarray]:
    path = require_folder(folder, "patches.npz") / "patches.npz"
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in ("image", "bands", "id")}
