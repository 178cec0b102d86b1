"""Single Sentinel-2 L2A patches in one `patches.npz`: `image` (N, band, y, x) uint16, `bands`, `id`. No places or dates.

64 x 64 px at 10 m (`--site-size-m 640`). Each patch is a place of its own, split by the hash of its id.
"""

import functools
import zipfile
from pathlib import Path

import numpy as np

from pipeline.chips import REFLECTANCE, Chip, cut_tiles, require_folder
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

LABELS: dict[str, Label] = {}
SENSOR = "sentinel2_l2a"
PLACES_PER_SHARD = 512


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, tuple[str, int]]:
    """Return {patch id: (file, index in it)}."""
    path = str(require_folder(folder, "patches.npz") / "patches.npz")
    return {str(name): (path, index) for index, name in enumerate(_read(path, "id")["id"])}


def tiles(place: str, found: tuple[str, int], grid: Grid) -> list[Tile]:
    """Return the tiles cut from one patch; a pixel that is zero in any band is no data."""
    path, index = found
    pixels = _images(path, Path(path).stat().st_mtime_ns)[index]
    chip = Chip(pixels, (pixels != 0).all(axis=0), REFLECTANCE)
    return cut_tiles(chip, load_sensor(SENSOR), grid, f"s2_patches/{place}", place)


@functools.lru_cache(maxsize=1)
def _images(path: str, _: int) -> np.ndarray:
    """Return `image` with its bands in the sensor's order; read again when the file's time is another."""
    sensor, content = load_sensor(SENSOR), _read(path, "bands", "image")
    found = [sensor.band(str(name)).name for name in content["bands"]]
    if sorted(found) != sorted(sensor.band_names):
        raise InputError(f"'{path}' has bands {found}, expected {', '.join(sensor.band_names)}")
    return content["image"][:, [found.index(name) for name in sensor.band_names]]


def _read(path: str, *names: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read '{path}': {error}") from None
