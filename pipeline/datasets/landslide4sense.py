"""Landslide4Sense: Sentinel-2 and terrain patches of four landslide regions, with the pixels that slid.

Ghorbanzadeh et al., TGRS 2022. 128 x 128 px of about 10 m (`--site-size-m 640` or 1280), 14 bands: Sentinel-2 B01 ... B12
without B8A, slope, elevation. `TrainData/img/image_<n>.h5` (`img`: y, x, band) and `TrainData/mask/mask_<n>.h5` (`mask`), or
`images/train/`, `annotations/train/`; or `image_<n>.tif` and `mask_<n>.png` side by side. No georeference, no dates.

The published numbers are each band divided by its mean over the data set; the means are published too (repository
iarai/Landslide4Sense-2022, issue 4) and give reflectance and metres back. That B10 is there, and as dark as cirrus is,
tells top-of-atmosphere reflectance. Slope is left out: it follows from the elevation. The split is that of the folders'
names; without one, patches are split by the hashes of their names.
"""

import re
from collections import defaultdict
from pathlib import Path

import h5py
import numpy as np

from pipeline.chips import REFLECTANCE, Chip, cut_tiles, read_chip, read_image, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, map_of
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import split_places

LABELS = {"landslide": Label("map", "tile", ("stable", "landslide"))}
OPTICAL, ELEVATION = "landslide4sense_optical", "landslide4sense_dem"
PLACES_PER_SHARD = 128
NUM_BANDS = 14
BAND_MEANS = np.array(
    [
        1111.81236406, 824.63171476, 663.41636217, 445.17289745, 645.8582926, 1547.73508126, 1960.44401001,
        1941.32229668, 674.07572865, 9.04787384, 1113.98338755, 519.90397929, 20.29228266, 772.83144788,
    ]
)  # fmt: skip
MEMBER = re.compile(r"(?P<kind>image|mask)_(?P<number>\d+)\.(h5|tif|png)")
SPLIT = re.compile(r"(?i)(train|val|test)(id|idation)?(data)?")


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in (OPTICAL, ELEVATION)}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {'<split>/<number>': {'image': file, 'mask': file}}; 'all' where the folders tell no split."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk(folder, ".h5", ".tif", ".png"):
        if match := MEMBER.fullmatch(Path(path).name):
            below = Path(path).relative_to(folder).parts[:-1]
            stated = [split[1].lower() for part in below if (split := SPLIT.fullmatch(part))]
            found[f"{stated[-1] if stated else 'all'}/{match['number']}"][match["kind"]] = path
    found = {place: files for place, files in found.items() if "image" in files}
    if not found:
        raise InputError(f"no Landslide4Sense patch under '{folder}'; expected image_<n>.h5 and mask_<n>.h5")
    return found


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the split that the folders say, or one by names."""
    stated = {place: place.partition("/")[0] for place in found}
    return split_places(found) if "all" in stated.values() else stated


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one patch, with its landslides where its mask is there."""
    values = _image(found["image"])
    is_finite = np.isfinite(values).all(axis=0)
    optical = Chip(values[:12], is_finite & (values[:12] != 0).all(axis=0), BAND_MEANS[:12] * REFLECTANCE)
    elevation = Chip(values[13:], is_finite, BAND_MEANS[13:])
    maps = {}
    if "mask" in found:
        maps = {"landslide": map_of(_mask(found["mask"]), {0: 0, 1: 1, 255: 1}, name=f"'{found['mask']}'")}
        optical.require_grid(maps["landslide"].classes.shape, None, f"'{found['image']}'")
    site, scene = f"landslide4sense/{place}", f"landslide4sense/{place}"
    return [
        *cut_tiles(optical, load_sensor(OPTICAL), grid, site, scene, maps=maps),
        *cut_tiles(elevation, load_sensor(ELEVATION), grid, site, scene, maps=maps),
    ]


def _image(path: str) -> np.ndarray:
    """Return (band, y, x) as published."""
    if not path.endswith(".h5"):
        return read_chip(path, NUM_BANDS, zeros="data", placed=False).pixels
    values = _read(path, "img")
    if values.ndim != 3 or values.shape[2] != NUM_BANDS:
        raise InputError(f"'{path}' has img of shape {values.shape}, expected (y, x, {NUM_BANDS})")
    return values.transpose(2, 0, 1)


def _mask(path: str) -> np.ndarray:
    return _read(path, "mask") if path.endswith(".h5") else read_image(path, 1)[0]


def _read(path: str, name: str) -> np.ndarray:
    try:
        with h5py.File(path) as file:
            return file[name][:]
    except (OSError, KeyError) as error:
        raise InputError(f"cannot read {name} of '{path}': {error}") from None
