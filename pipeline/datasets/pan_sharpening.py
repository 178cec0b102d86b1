"""Pairs of panchromatic and multispectral images in NumPy files, as papers on pan-sharpening pass them on.

`<name>.npz` of any folder depth: `pan` (y * 4, x * 4), `ms` (band, y, x), digital numbers without a place on the ground; the file's
name begins with WV2 (WorldView-2, 8 bands, 2 m), GE1 (GeoEye-1, 4 bands, 2 m, 8 bits) or IK (IKONOS, 4 bands, 4 m).
`--site-size-m 128`: 64 multispectral pixels of 2 m. A pixel of zero in all bands is no data.

Nobody publishes a split: each image is cut from left to right into ten strips, six to train, one to val, three to test, so that
an image alone has all splits. Neighbouring strips share a border, not ground.
"""

from pathlib import Path

import numpy as np

from pipeline.chips import Chip, cut_tiles, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

LABELS: dict[str, Label] = {}
PREFIXES = {"WV2": "worldview", "GE1": "geoeye1", "IK": "ikonos"}
STRIPS = ("train",) * 6 + ("val",) + ("test",) * 3


def sensors() -> dict[str, Sensor]:
    return {f"{name}_{kind}": load_sensor(f"{name}_{kind}") for name in PREFIXES.values() for kind in ("ms", "pan")}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {'<image>_<strip>': {'image': file, 'strip': number}}."""
    found: dict[str, dict[str, str]] = {}
    for path in walk(folder, ".npz"):
        name = Path(path).stem
        if _prefix(name):
            found |= {f"{name}_{strip}": {"image": path, "strip": str(strip)} for strip in range(len(STRIPS))}
    if not found:
        raise InputError(
            f"no pair of images under '{folder}'; expected {' or '.join(f'{p}*.npz' for p in PREFIXES)} with 'pan' and 'ms'"
        )
    return found


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    return {place: STRIPS[int(files["strip"])] for place, files in found.items()}


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of a strip: of the columns of whole sites, its share."""
    image = Path(found["image"]).stem
    names = [f"{PREFIXES[_prefix(image)]}_{kind}" for kind in ("ms", "pan")]
    ms, pan = (_read(found["image"], load_sensor(name)) for name in names)
    ratio = round(load_sensor(names[0]).gsd_m / load_sensor(names[1]).gsd_m)
    if pan.is_valid.shape != tuple(ratio * side for side in ms.is_valid.shape):
        raise InputError(f"'{found['image']}' has pan of {pan.is_valid.shape}, expected {ratio} times ms of {ms.is_valid.shape}")
    made = []
    for chip, name in ((ms, names[0]), (pan, names[1])):
        sensor = load_sensor(name)
        first, last = _columns(int(found["strip"]), chip.is_valid.shape[1] // sensor.tile_shape(grid.site_size_m)[1])
        size = sensor.tile_shape(grid.site_size_m)[1]
        if last > first:
            strip = chip.crop(0, first * size, (chip.is_valid.shape[0], (last - first) * size))
            made += cut_tiles(strip, sensor, grid, f"pan_sharpening/{place}", f"{image}_{name}")
    return made


def _columns(strip: int, num_columns: int) -> tuple[int, int]:
    """Return the first column of sites of a strip and that of the next strip."""
    first, last = (round(edge * num_columns / len(STRIPS)) for edge in (strip, strip + 1))
    return first, last


def _prefix(name: str) -> str:
    return next((prefix for prefix in PREFIXES if name.upper().startswith(prefix)), "")


def _read(path: str, sensor: Sensor) -> Chip:
    kind = sensor.name.rpartition("_")[2]
    try:
        with np.load(path, allow_pickle=False) as content:
            pixels = content[kind]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read '{kind}' of '{path}': {error}; expected an .npz with 'pan' and 'ms'") from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or len(pixels) != len(sensor.bands):
        raise InputError(f"'{kind}' of '{path}' has shape {pixels.shape}, expected {len(sensor.bands)} bands of {sensor.name}")
    return Chip(pixels, (pixels != 0).any(0))
