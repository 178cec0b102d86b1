"""ISPRS Vaihingen: infrared, red and green orthophotos of 9 cm with their surface model and six classes.

`top/top_mosaic_09cm_area<n>.tif` (8-bit), `dsm/dsm_09cm_matching_area<n>.tif` (float32 metres), and labels of the same names
as the images in any other folder; 33 areas of about 2500 x 2000 px (`--site-size-m 46.08` is 512 px). No CRS, no dates.
Split: the published 16 and 17 areas; a fifth of the first is 'val'. Classes and colours: see `_isprs`.
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
PLACES_PER_SHARD = 4
NAME = re.compile(r"(top_mosaic_09cm|dsm_09cm_matching)_(area\d+)(?:_noBoundary)?\.tif")
TRAIN = [f"area{n}" for n in (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)]
TEST = [f"area{n}" for n in (2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38)]


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in ("isprs_vaihingen", "isprs_vaihingen_dsm")}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {area: its files} of every area with an image."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in map(Path, walk(folder, ".tif")):
        if match := NAME.fullmatch(path.name):
            if match[1].startswith("dsm"):
                found[match[2]]["height"] = str(path)
            elif path.parent.name == "top":
                found[match[2]]["image"] = str(path)
            else:
                _isprs.keep_label(found[match[2]], str(path))
    found = {area: files for area, files in found.items() if "image" in files}
    if not found:
        raise InputError(f"no Vaihingen area under '{folder}'; expected top/top_mosaic_09cm_area<n>.tif")
    return found


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the published split."""
    return _isprs.published_split(found, TRAIN, TEST)


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one area."""
    return _isprs.area_tiles(f"isprs_vaihingen/{place}", found, sensors(), grid)
