"""SEN12MS: Sentinel-1, Sentinel-2 and MODIS land cover of the same ground all over the world, in four seasons.

Schmitt et al., ISPRS Annals 2019, arXiv 1906.07789. 256 x 256 px at 10 m (`--site-size-m 640` or 2560), UTM:
`ROIs<seed>_<season>/<kind>_<scene>/ROIs<seed>_<season>_<kind>_<scene>_p<patch>.tif`, kind is s1 (VV, VH in dB), s2 (13
bands of top-of-atmosphere reflectance x 10000) or lc (4 bands, the first the IGBP class 1 ... 17 at 500 m, brought to
10 m by its authors). A patch is a place. The split is read from `train_list.txt` and `test_list.txt`, one file name a
line, where they lie in the folder (a fifth of the train scenes is then 'val'); otherwise regions are held out as
SEN12MS-CR does, see `_sen12`. The files do not say when the images were taken.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.chips import REFLECTANCE, cut_tiles, read_chip, walk
from pipeline.datasets._sen12 import REGION, scene_of, split_by_region
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap, map_of
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import hold_out

IGBP = (
    "Evergreen needleleaf forest", "Evergreen broadleaf forest", "Deciduous needleleaf forest", "Deciduous broadleaf forest",
    "Mixed forest", "Closed shrublands", "Open shrublands", "Woody savannas", "Savannas", "Grasslands", "Permanent wetlands",
    "Croplands", "Urban and built-up lands", "Cropland and natural vegetation mosaics", "Permanent snow and ice", "Barren",
    "Water bodies",
)  # fmt: skip
LABELS = {"igbp": Label("map", "tile", IGBP)}
PLACES_PER_SHARD = 32
NAME = re.compile(rf"{REGION}_(?P<kind>s1|s2|lc)_(?P<scene>\d+)_p(?P<patch>\d+)(\.tif)?")
SENSORS = {"s1": ("sentinel1_grd", 1.0), "s2": ("sentinel2_l1c", REFLECTANCE)}
LISTS = {"train_list.txt": "train", "test_list.txt": "test"}


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name, _ in SENSORS.values()}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {'<region>_<scene>_p<patch>': {kind: file}} of every patch with an image."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk(folder, ".tif"):
        if match := NAME.fullmatch(Path(path).name):
            found[_place(match)][match["kind"]] = path
    found = {place: kinds for place, kinds in found.items() if SENSORS.keys() & kinds}
    if not found:
        raise InputError(f"no SEN12MS patch under '{folder}'; expected ROIs<seed>_<season>_<s1|s2|lc>_<scene>_p<patch>.tif")
    return found


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the published split, or the one by regions."""
    stated: dict[str, str] = {}
    lists = [Path(path) for path in walk(folder, *LISTS) if Path(path).name in LISTS]
    for path in lists:
        names = [NAME.fullmatch(line) for line in path.read_text().split()]
        stated |= {_place(match): LISTS[path.name] for match in names if match}
    if not lists:
        return split_by_region(found)
    if missing := [place for place in found if place not in stated]:
        raise InputError(f"{len(missing)} patches such as '{missing[0]}' are in none of {', '.join(LISTS)} under '{folder}'")
    return hold_out({place: stated[place] for place in found}, scene_of)


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one patch, with the land cover of every pixel where there is one."""
    maps = {"igbp": _land_cover(found["lc"])} if "lc" in found else {}
    result: list[Tile] = []
    for kind, (name, scale) in SENSORS.items():
        if kind not in found:
            continue
        sensor = load_sensor(name)
        chip = read_chip(found[kind], len(sensor.bands), scale)
        for cover in maps.values():
            chip.require_grid(cover.classes.shape, None, f"'{found[kind]}'")
        result += cut_tiles(chip, sensor, grid, f"sen12ms/{place}", Path(found[kind]).stem, maps=maps)
    return result


def _land_cover(path: str) -> LabelMap:
    codes = read_chip(path, 4, zeros="data").pixels[0]
    return map_of(np.asarray(codes), {index + 1: index for index in range(len(IGBP))}, (0, 255), f"'{path}'")


def _place(match: re.Match[str]) -> str:
    return f"{match['region']}_{match['scene']}_p{match['patch']}"
