"""Sen1Floods11: Sentinel-1 and Sentinel-2 chips of eleven floods with water masks drawn by hand.

Bonafilia et al., CVPR Workshops 2020. 512 x 512 px at 10 m (`--site-size-m 640` or 5120) in EPSG:4326; `<chip>_S1Hand.tif`
float32 dB (VV, VH), `<chip>_S2Hand.tif` 13 bands of top-of-atmosphere reflectance x 10000, `<chip>_LabelHand.tif` (-1 no
label, 0 dry, 1 water), in one folder or in three; also S1 as hundredths of a dB (`_S1Hand_centidB.tif`). Dates are not in
the files. The published split is read from `flood_{train,valid,test,bolivia}_data.csv` where they lie beside them;
without them a flood, that is all chips of a country, goes to one split.
"""

import csv
from collections import defaultdict
from pathlib import Path

from pipeline.chips import REFLECTANCE, Window, cut_tiles, read_chip, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, map_of
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import split_places

LABELS = {"water_fraction": Label("fraction", "tile"), "water": Label("map", "tile", ("dry", "water"))}
LABEL = "_LabelHand.tif"
IMAGES = {  # file name's end -> sensor, scale
    "_S1Hand.tif": ("sentinel1_grd", 1.0),
    "_S1Hand_centidB.tif": ("sentinel1_grd", 0.01),
    "_S2Hand.tif": ("sentinel2_l1c", REFLECTANCE),
}
SPLIT_FILES = {
    "flood_train_data.csv": "train",
    "flood_valid_data.csv": "val",
    "flood_test_data.csv": "test",
    "flood_bolivia_data.csv": "test",
}
MIN_LABELLED = 0.5


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in ("sentinel1_grd", "sentinel2_l1c")}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {chip: {file name's end: file}} of the chips that have a label."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk(folder, LABEL, *IMAGES):
        end = next(end for end in (LABEL, *IMAGES) if path.endswith(end))
        found[Path(path).name.removesuffix(end)][end] = path
    labelled = {chip: files for chip, files in found.items() if LABEL in files}
    if not labelled:
        raise InputError(f"no Sen1Floods11 chip under '{folder}'; expected <chip>_S1Hand.tif and <chip>{LABEL}")
    return labelled


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the published split, Bolivia's chips, held out by the authors, in test; without its files one by countries."""
    tables = {path: SPLIT_FILES[Path(path).name] for path in walk(folder, *SPLIT_FILES) if Path(path).name in SPLIT_FILES}
    if not tables:
        return split_places(found, lambda chip: chip.partition("_")[0])
    stated: dict[str, str] = {}
    for path, split in tables.items():
        with open(path, newline="") as file:
            stated |= {Path(row[0]).name.removesuffix("_S1Hand.tif"): split for row in csv.reader(file) if row}
    if missing := [name for name in found if name not in stated]:
        raise InputError(f"{len(missing)} chips such as '{missing[0]}' are in none of {', '.join(SPLIT_FILES)} under '{folder}'")
    return {name: stated[name] for name in found}


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one chip; a tile with less than half of its ground labelled has no fraction."""
    label = read_chip(found[LABEL], 1, zeros="data")
    water = map_of(label.pixels[0], {0: 0, 1: 1}, (-1,), f"'{found[LABEL]}'")

    def labels(window: Window) -> dict[str, float]:
        part = water[window]
        is_known = part.is_labelled.mean() >= MIN_LABELLED
        return {"water_fraction": float(part.classes[part.is_labelled].mean())} if is_known else {}

    images = {IMAGES[end][0]: end for end in reversed(IMAGES) if end in found}  # one per sensor, the first named
    if not images:
        raise InputError(f"chip '{place}' has a label but no image; expected {place}_S1Hand.tif or {place}_S2Hand.tif")
    result = []
    for name, end in images.items():
        sensor, path = load_sensor(name), found[end]
        chip = read_chip(path, len(sensor.bands), IMAGES[end][1])
        chip.require_grid(water.classes.shape, label.transform, f"'{path}'")
        result += cut_tiles(chip, sensor, grid, f"sen1floods11/{place}", place, labels=labels, maps={"water": water})
    return result
