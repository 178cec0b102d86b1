"""EuroSAT: 27,000 Sentinel-2 patches of ten land-cover classes in Europe, all bands.

Helber et al., JSTARS 2019. `<class>/<class>_<number>.tif`, 64 x 64 px at 10 m (`--site-size-m 640`), UTM, 13 bands of
top-of-atmosphere reflectance x 10000 in the order B01 ... B08, B09, B10, B11, B12, B8A (B8A last). Dates are not in the
files. Published splits: see `_eurosat`. Without one, all patches of a square of a tenth of a degree go to one split.
"""

from dataclasses import replace

from pipeline.chips import REFLECTANCE, cut_tiles, read_chip
from pipeline.datasets import _eurosat
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import ground_squares, split_places

LABELS, PLACES_PER_SHARD = _eurosat.LABELS, _eurosat.PLACES_PER_SHARD
SENSOR = "sentinel2_l1c"
FILE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
SQUARE_DEG = 0.1


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, str]:
    """Return {patch: its file}."""
    return _eurosat.patches(folder, ".tif")


def splits(folder: str, found: dict[str, str]) -> dict[str, str]:
    """Return the published split, or one by squares of ground."""
    return _eurosat.published_split(folder, found) or split_places(found, ground_squares(found, SQUARE_DEG).__getitem__)


def tiles(place: str, path: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one patch, one where a site is 640 m."""
    sensor, chip = load_sensor(SENSOR), read_chip(path, len(FILE_BANDS), REFLECTANCE)
    chip = replace(chip, pixels=chip.pixels[[FILE_BANDS.index(band) for band in sensor.band_names]])
    label = float(_eurosat.CLASSES.index(_eurosat.class_of(place)))
    return cut_tiles(chip, sensor, grid, f"eurosat/{place}", place, labels=lambda _: {"eurosat": label})
