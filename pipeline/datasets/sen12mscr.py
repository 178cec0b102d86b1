"""SEN12MS-CR: Sentinel-1, clear and cloudy Sentinel-2 patches of the same ground, for cloud removal and pretraining.

Ebel et al., TGRS 2021. 256 x 256 px at 10 m (`--site-size-m 640` or 2560), UTM: `ROIs<seed>_<season>_<kind>_<scene>_p<patch>.tif`
in folders of the same scheme, or `<kind>_ROIs<seed>_<season>_<scene>_<patch>.tif` side by side; kind is s1 (VV, VH in
dB), s2 or s2_clear, s2_cloudy (13 bands of top-of-atmosphere reflectance x 10000). A patch is a place; the split is the
published one, by regions. The clear image is date 0, the cloudy one date 1, labelled `cloudy`; the files do not say when they
were taken.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.chips import REFLECTANCE, Window, cut_tiles, read_chip, walk
from pipeline.datasets._sen12 import REGION, split_by_region
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

LABELS = {"cloudy": Label("binary", "tile")}
PLACES_PER_SHARD = 32
PUBLISHED = re.compile(rf"{REGION}_(?P<kind>s1|s2|s2_cloudy)_(?P<scene>\d+)_p(?P<patch>\d+)\.tif")
FLAT = re.compile(rf"(?P<kind>s1|s2_clear|s2_cloudy)_{REGION}_(?P<scene>\d+)_p?(?P<patch>\d+)\.tif")
KINDS = {
    "s1": ("sentinel1_grd", 0),
    "s2": ("sentinel2_l1c", 0),
    "s2_clear": ("sentinel2_l1c", 0),
    "s2_cloudy": ("sentinel2_l1c", 1),
}


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in ("sentinel1_grd", "sentinel2_l1c")}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {'<region>_<scene>_p<patch>': {kind: file}}."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk(folder, ".tif"):
        name = Path(path).name
        if match := PUBLISHED.fullmatch(name) or FLAT.fullmatch(name):
            found[f"{match['region']}_{match['scene']}_p{match['patch']}"][match["kind"]] = path
    if not found:
        expected = "ROIs<seed>_<season>_<s1|s2|s2_cloudy>_<scene>_p<patch>.tif"
        raise InputError(f"no SEN12MS-CR patch under '{folder}'; expected {expected}")
    return dict(found)


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the published split."""
    return split_by_region(found)


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one patch."""
    result = []
    for kind, path in sorted(found.items()):
        name, order = KINDS[kind]
        sensor = load_sensor(name)
        chip = read_chip(path, len(sensor.bands), 1.0 if kind == "s1" else REFLECTANCE)
        result += cut_tiles(chip, sensor, grid, f"sen12mscr/{place}", Path(path).stem, order=order, labels=_labels(kind))
    return result


def _labels(kind: str) -> Callable[[Window], Mapping[str, float | list[int]]]:
    known = {} if kind == "s1" else {"cloudy": float(kind == "s2_cloudy")}
    return lambda _: known
