"""RSSCN7: colour images of seven kinds of scene from Google Earth.

Zou et al., IEEE GRSL 2015. `<class>/<letter><number>.jpg`, in the published archive with a letter before the class
(`aGrass/a001.jpg`), 400 x 400 px of four scales without georeference; whatever their size, images are resampled to
128 x 128 px, a site of 640 m at a nominal 5 m (`--site-size-m 640`). No published split: by the hash of each image's name,
class by class alike.
"""

from pathlib import Path

import numpy as np

from pipeline.chips import Chip, cut_tiles, read_image, resample, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

CLASSES = ("Grass", "Field", "Industry", "RiverLake", "Forest", "Resident", "Parking")
LABELS = {"rsscn7": Label("class", "tile", CLASSES)}
SENSOR = "rsscn7_rgb"
PLACES_PER_SHARD = 512
SITE_SIZE_M = 640.0


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, tuple[str, int]]:
    """Return {image: (its file, its class)}."""
    found = {}
    for path in map(Path, walk(folder, ".jpg")):
        if (name := _class_of(path.parent.name)) is not None:
            found[f"{CLASSES[name]}/{path.stem}"] = str(path), name
    if not found:
        raise InputError(f"no RSSCN7 image under '{folder}'; expected <class>/<name>.jpg, classes {', '.join(CLASSES)}")
    return found


def tiles(place: str, found: tuple[str, int], grid: Grid) -> list[Tile]:
    """Return the tiles of one image, one where a site is 640 m."""
    path, label = found
    sensor = load_sensor(SENSOR)
    side = round(SITE_SIZE_M / sensor.gsd_m)
    pixels = np.stack([resample(band, (side, side)) for band in read_image(path, len(sensor.bands))])
    chip = Chip(pixels, np.ones((side, side), bool))
    return cut_tiles(chip, sensor, grid, f"rsscn7/{place}", place, labels=lambda _: {"rsscn7": float(label)})


def _class_of(folder: str) -> int | None:
    """Return the class that a folder such as 'Grass' or 'aGrass' holds."""
    return next((n for n, name in enumerate(CLASSES) if folder == name or (folder[1:] == name and folder[0].islower())), None)
