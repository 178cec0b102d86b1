"""What the two ISPRS semantic labelling data sets share: classes, their colours, and how image, height and label make tiles.

Rottensteiner et al., ISPRS Annals 2012. A label is an image of six colours; pixels of any other colour, such as the black
borders of the `noBoundary` version on which scores are published, are not labelled. Where both versions lie in the
folder, the one with all pixels is taken.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.chips import Chip, cut_tiles, read_chip
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap
from pipeline.sensors import Sensor
from pipeline.shard import Tile
from pipeline.splits import hold_out

COLOURS = {
    "Impervious surfaces": (255, 255, 255),
    "Building": (0, 0, 255),
    "Low vegetation": (0, 255, 255),
    "Tree": (0, 255, 0),
    "Car": (255, 255, 0),
    "Clutter": (255, 0, 0),
}
LABELS = {"isprs": Label("map", "tile", tuple(COLOURS))}


def keep_label(files: dict[str, str], path: str) -> None:
    """Make `path` the label of an area unless it is the eroded version and the whole one is there."""
    if "noBoundary" not in Path(path).name or "label" not in files:
        files["label"] = path


def published_split(found: Iterable[str], train: Iterable[str], test: Iterable[str]) -> dict[str, str]:
    """Return the split of the areas, with a fifth of `train` held out as 'val'."""
    stated = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    if unknown := [area for area in found if area not in stated]:
        raise InputError(f"area '{unknown[0]}' is none of the {len(stated)} published ones ({', '.join(sorted(stated))})")
    return hold_out({area: stated[area] for area in found})


def area_tiles(site: str, found: dict[str, str], sensors: dict[str, Sensor], grid: Grid) -> list[Tile]:
    """Return the tiles of one area from its files 'image', 'height' and, where there is one, 'label'."""
    if missing := [name for name in ("image", "height") if name not in found]:
        raise InputError(
            f"area '{site}' has no {missing[0]} (has {', '.join(sorted(found))}); expected its image and its surface model"
        )
    optical, elevation = sensors.values()
    image = read_chip(found["image"], len(optical.bands), zeros="data", placed=False)
    shape = image.is_valid.shape
    height = _as_large_as(shape, read_chip(found["height"], 1, zeros="data", placed=False), found["height"])
    maps = {}
    if "label" in found:
        label = read_chip(found["label"], 3, zeros="data", placed=False)
        label.require_grid(shape, image.transform if image.crs and label.crs else None, f"'{found['label']}'")
        maps = {"isprs": _classes(label.pixels)}
    return [
        *cut_tiles(image, optical, grid, site, f"{site}/image", maps=maps),
        *cut_tiles(height, elevation, grid, site, f"{site}/height", maps=maps),
    ]


def _as_large_as(shape: tuple[int, ...], height: Chip, path: str) -> Chip:
    """Return heights of the image's `shape`; some published files lack the last row or column."""
    if max(abs(n - m) for n, m in zip(height.is_valid.shape, shape)) > 1:
        height.require_grid(shape, None, f"'{path}'")
    return height.crop(0, 0, (shape[0], shape[1]))


def _classes(colours: np.ndarray) -> LabelMap:
    classes, is_labelled = np.zeros(colours.shape[1:], np.uint8), np.zeros(colours.shape[1:], bool)
    for index, colour in enumerate(COLOURS.values()):
        chosen = np.logical_and.reduce([band == value for band, value in zip(colours, colour)])
        classes[chosen] = index
        is_labelled |= chosen
    return LabelMap(classes, is_labelled)
