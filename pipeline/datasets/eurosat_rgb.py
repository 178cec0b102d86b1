"""EuroSAT RGB: the same 27,000 patches as 8-bit colour JPEGs.

Helber et al., JSTARS 2019. `<class>/<class>_<number>.jpg`, 64 x 64 px at 10 m (`--site-size-m 640`), stretched for looking
at, so digital numbers without a unit; no georeference, no dates. Published splits: see `_eurosat`. Without one, a patch is
a place of its own, and neighbours, which the files do not tell, can be in two splits.
"""

from pathlib import Path

import numpy as np

from pipeline.chips import Chip, cut_tiles, read_image
from pipeline.datasets import _eurosat
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import split_places

LABELS, PLACES_PER_SHARD = _eurosat.LABELS, _eurosat.PLACES_PER_SHARD
SENSOR = "sentinel2_rgb"


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, str]:
    """Return {patch: its file}."""
    return _eurosat.patches(folder, ".jpg")


def splits(folder: str, found: dict[str, str]) -> dict[str, str]:
    """Return the published split, or one by the patches' names."""
    return _eurosat.published_split(folder, found) or split_places(found)


def tiles(place: str, path: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one patch, one where a site is 640 m."""
    pixels = read_image(Path(path), 3)
    chip = Chip(pixels, np.ones(pixels.shape[1:], bool))
    label = float(_eurosat.CLASSES.index(_eurosat.class_of(place)))
    return cut_tiles(chip, load_sensor(SENSOR), grid, f"eurosat_rgb/{place}", place, labels=lambda _: {"eurosat": label})
