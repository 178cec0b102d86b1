"""ISPRS Potsdam: red, green, blue and infrared orthophotos of 5 cm with their surface model and six classes.

`top_potsdam_<row>_<column>_RGBIR.tif` (8-bit), `dsm_potsdam_<0row>_<column>.tif` (float32 metres) and
`top_potsdam_<row>_<column>_label.tif` in folders of any name; 38 areas of 6000 x 6000 px (`--site-size-m 25.6` is 512 px) in
EPSG:32633. No dates. Split: the published 24 and 14 areas; a fifth of the first is 'val'. Classes and colours: see `_isprs`.
"""

import re
from collections import defaultdict
from pathlib import Path

from pipeline.chips import walk
from pipeline.datasets import _isprs
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

LABELS = _isprs.LABELS
PLACES_PER_SHARD = 1
IMAGE = re.compile(r"top_potsdam_(\d+)_(\d+)_(RGBIR|label(?:_noBoundary)?)\.tif")
HEIGHT = re.compile(r"dsm_potsdam_(\d+)_(\d+)\.tif")
TRAIN = [f"{row}_{column}" for row in range(2, 8) for column in (10, 11, 12)]
TRAIN += [f"{row}_{column}" for row in (6, 7) for column in (7, 8, 9)]
TEST = ["2_13", "2_14", "3_13", "3_14", "4_13", "4_14", "4_15", "5_13", "5_14", "5_15", "6_13", "6_14", "6_15", "7_13"]


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in ("isprs_potsdam", "isprs_potsdam_dsm")}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {'<row>_<column>': its files} of every area with an image."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk(folder, ".tif"):
        if match := IMAGE.fullmatch(Path(path).name):
            files = found[f"{match[1]}_{match[2]}"]
            if match[3] == "RGBIR":
                files["image"] = path
            else:
                _isprs.keep_label(files, path)
        elif match := HEIGHT.fullmatch(Path(path).name):
            found[f"{int(match[1])}_{int(match[2])}"]["height"] = path
    found = {area: files for area, files in found.items() if "image" in files}
    if not found:
        raise InputError(f"no Potsdam area under '{folder}'; expected top_potsdam_<row>_<column>_RGBIR.tif")
    return found


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the published split."""
    return _isprs.published_split(found, TRAIN, TEST)


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one area."""
    return _isprs.area_tiles(f"isprs_potsdam/{place}", found, sensors(), grid)
