"""Sen1Floods11: Sentinel-1 and Sentinel-2 chips of eleven floods with water masks drawn by hand.

Bonafilia et al., CVPR Workshops 2020. 512 x 512 px at 10 m in EPSG:4326; `<chip>_S1Hand.tif` float32 dB (VV, VH),
`<chip>_S2Hand.tif` 13 bands of top-of-atmosphere reflectance x 10000, `<chip>_LabelHand.tif` (-1 no label, 0 dry, 1
water), in one folder or in three; also S1 as hundredths of a dB (`_S1Hand_centidB.tif`). Dates are not in the files.
A chip is a place. The published split is read from `flood_{train,valid,test,bolivia}_data.csv`
where they lie beside them.
"""

import csv
from pathlib import Path

import numpy as np

from pipeline.archive import Label, Tile
from pipeline.chips import Chip, cut, read_chip
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor

LABELS = {"water_fraction": Label("fraction", "tile")}
SUFFIX = "_LabelHand.tif"
SPLIT_FILES = {
    "flood_train_data.csv": "train",
    "flood_valid_data.csv": "val",
    "flood_test_data.csv": "test",
    "flood_bolivia_data.csv": "test",
}
MIN_LABELLED = 0.5


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in ("sentinel1_grd", "sentinel2_l1c")}


def places(folder: str) -> list[str]:
    """Return the chips that have a label."""
    found = sorted(path.name.removesuffix(SUFFIX) for path in Path(folder).rglob(f"*{SUFFIX}"))
    if not found:
        raise InputError(f"no Sen1Floods11 chip under '{folder}'; expected <chip>_S1Hand.tif and <chip>{SUFFIX}")
    return found


def splits(folder: str) -> dict[str, str]:
    """Return the published split, Bolivia's chips, held out by the authors, in test; empty where no file states it."""
    tables = {path: split for name, split in SPLIT_FILES.items() for path in Path(folder).rglob(name)}
    stated: dict[str, str] = {}
    for path, split in tables.items():
        with open(path, newline="") as file:
            stated |= {Path(row[0]).name.removesuffix("_S1Hand.tif"): split for row in csv.reader(file) if row}
    missing = [name for name in places(folder) if name not in stated]
    if tables and missing:
        raise InputError(f"{len(missing)} chips such as '{missing[0]}' are in none of {', '.join(SPLIT_FILES)} under '{folder}'")
    return {name: stated[name] for name in places(folder)} if tables else {}


def tiles(folder: str, place: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one chip; a tile with less than half of its ground labelled has no label."""
    label = _read(folder, f"{place}{SUFFIX}", 1)
    assert label is not None
    chips = {
        "sentinel1_grd": _radar(folder, place),
        "sentinel2_l1c": _read(folder, f"{place}_S2Hand.tif", 13),
    }
    result = []
    for name, chip in chips.items():
        if chip is None:
            continue
        sensor = load_sensor(name)
        physical = chip.pixels if name == "sentinel1_grd" else sensor.to_physical(chip.pixels)
        stored = sensor.to_stored(np.where(chip.is_valid, physical, 0))
        for part, window in cut(chip.is_valid.shape, sensor.tile_shape(grid.site_size_m)[0]):
            if chip.is_valid[window].mean() < 0.3:
                continue
            result.append(
                Tile(
                    sensor=name,
                    site=f"sen1floods11/{place}/{part}",
                    pixels=stored[:, *window],
                    is_valid=chip.is_valid[window],
                    time=None,
                    order=0,
                    scene=place,
                    labels=_label(label.pixels[0][window]),
                    **chip.place(window),
                )
            )
    return result


def _radar(folder: str, place: str) -> Chip | None:
    """Return the Sentinel-1 chip in dB, from either way of storing it."""
    chip = _read(folder, f"{place}_S1Hand.tif", 2)
    if chip is None and (hundredths := _read(folder, f"{place}_S1Hand_centidB.tif", 2)):
        chip = Chip(hundredths.pixels / np.float32(100), hundredths.is_valid, hundredths.crs, hundredths.transform)
    return chip


def _read(folder: str, name: str, num_bands: int) -> Chip | None:
    path = next(Path(folder).rglob(name), None)
    return read_chip(path, num_bands) if path else None


def _label(classes: np.ndarray) -> dict[str, float]:
    is_labelled = classes >= 0
    return {"water_fraction": float((classes[is_labelled] == 1).mean())} if is_labelled.mean() >= MIN_LABELLED else {}
