"""SEN12MS-CR: Sentinel-1, clear and cloudy Sentinel-2 patches of the same ground, for cloud removal and pretraining.

Ebel et al., TGRS 2021. 256 x 256 px at 10 m, UTM: `ROIs<seed>_<season>_<kind>_<scene>_p<patch>.tif` in folders of the
same scheme, or `<kind>_ROIs<seed>_<season>_<scene>_<patch>.tif` side by side; kind is s1 (VV, VH in dB), s2 or s2_clear,
s2_cloudy (13 bands of top-of-atmosphere reflectance x 10000). A region's scene is a place, so neighbouring patches stay
in one split. The clear image is date 0, the cloudy one date 1; the files do not say when they were taken.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.archive import Label, Tile
from pipeline.chips import cut, read_chip
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor

LABELS: dict[str, Label] = {}
PUBLISHED = re.compile(r"(?P<region>ROIs\d+_[a-z]+)_(?P<kind>s1|s2|s2_cloudy)_(?P<scene>\d+)_(?P<patch>p\d+)\.tif")
FLAT = re.compile(r"(?P<kind>s1|s2_clear|s2_cloudy)_(?P<region>ROIs\d+_[a-z]+)_(?P<scene>\d+)_(?P<patch>p?\d+)\.tif")
KINDS = {
    "s1": ("sentinel1_grd", 0),
    "s2": ("sentinel2_l1c", 0),
    "s2_clear": ("sentinel2_l1c", 0),
    "s2_cloudy": ("sentinel2_l1c", 1),
}


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in ("sentinel1_grd", "sentinel2_l1c")}


def places(folder: str) -> list[str]:
    """Return '<region>_<scene>' of every scene with a patch."""
    found = sorted(_patches(folder))
    if not found:
        raise InputError(
            f"no SEN12MS-CR patch under '{folder}'; expected ROIs<seed>_<season>_<s1|s2|s2_cloudy>_<scene>_p<patch>.tif"
        )
    return found


def tiles(folder: str, place: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one scene's patches."""
    result = []
    for patch, kind, path in _patches(folder)[place]:
        name, order = KINDS[kind]
        sensor = load_sensor(name)
        chip = read_chip(path, len(sensor.bands))
        physical = chip.pixels if name == "sentinel1_grd" else sensor.to_physical(chip.pixels)
        stored = sensor.to_stored(np.where(chip.is_valid, physical, 0))
        for part, window in cut(chip.is_valid.shape, sensor.tile_shape(grid.site_size_m)[0]):
            if chip.is_valid[window].mean() >= 0.3:
                result.append(
                    Tile(
                        sensor=name,
                        site=f"sen12mscr/{place}/{patch}/{part}",
                        pixels=stored[:, *window],
                        is_valid=chip.is_valid[window],
                        time=None,
                        order=order,
                        scene=path.stem,
                        **chip.place(window),
                    )
                )
    return result


def _patches(folder: str) -> dict[str, list[tuple[str, str, Path]]]:
    """Return place -> (patch, kind, file), in one order."""
    found = defaultdict(list)
    for path in sorted(Path(folder).rglob("*.tif")):
        if match := PUBLISHED.fullmatch(path.name) or FLAT.fullmatch(path.name):
            found[f"{match['region']}_{match['scene']}"].append((match["patch"].lstrip("p"), match["kind"], path))
    return found
