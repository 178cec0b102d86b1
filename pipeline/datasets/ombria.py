"""OMBRIA: paired Sentinel-1 and Sentinel-2 chips before and after floods, with flood masks.

Drakonakis et al., "OmbriaNet", IEEE JSTARS 2022. 8-bit stretched PNGs without georeference or dates, 256 x 256 px at 10 m
(`--site-size-m 640` or 2560); same name in every folder = same place. Either one set of folders or several sets side by
side (train/, event_x/). Where one of the sets is called train, the others are for testing and a fifth of it is 'val'; else places
are split by hashes. The files do not tell which places are neighbours, but numbers near each other often are: runs of 25 stay
together, for a random val would be the ground that was trained on. A single set of fewer than three runs is split place by place.
"""

from pathlib import Path

import numpy as np

from pipeline.chips import Chip, Window, cut_tiles, read_image, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import hold_out, split_places

LABELS = {"flooded_fraction": Label("fraction", "site"), "flooded": Label("map", "site", ("dry", "flooded"))}
RUN_LENGTH = 25
FOLDERS = {"ombria_sar": ("s1_before", "s1_after"), "ombria_optical": ("s2_before", "s2_after")}


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in FOLDERS}


def places(folder: str) -> dict[str, str]:
    """Return {'<set>/<name>': flood mask} of every place that has all five images."""
    root, present = Path(folder), set(walk(folder, ".png"))
    found = {}
    for mask in sorted(Path(path) for path in present):
        images = [str(mask.parent.parent / name / mask.name) for pair in FOLDERS.values() for name in pair]
        if mask.parent.name == "flood_mask" and present.issuperset(images):
            found[str(mask.parent.parent.relative_to(root) / mask.stem)] = str(mask)
    if not found:
        needed = ", ".join(name for pair in FOLDERS.values() for name in pair)
        raise InputError(f"no OMBRIA place under '{folder}'; expected flood_mask, {needed} with the same PNG names")
    return found


def splits(folder: str, found: dict[str, str]) -> dict[str, str]:
    """Return the split of each place: events beside the set 'train' are held out whole."""
    stated = {place: "train" if place.startswith("train/") else "test" for place in found}
    if len(set(stated.values())) == 2:
        return hold_out(stated, _run_of)
    return split_places(found, _run_of if len(set(map(_run_of, found))) >= 3 else str)


def _run_of(place: str) -> str:
    """Return the run of neighbouring numbers that a place is in, '<set>/<first number>'; itself where its name is no number."""
    name = Path(place)
    return str(name.parent / str(int(name.name) // RUN_LENGTH * RUN_LENGTH)) if name.name.isdigit() else place


def tiles(place: str, mask: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one place; black pixels of the optical chips are no data."""
    is_flooded = read_image(mask, 1)[0] > 0
    maps = {"flooded": LabelMap(is_flooded.astype(np.uint8), np.ones_like(is_flooded))}

    def labels(window: Window) -> dict[str, float]:
        return {"flooded_fraction": float(is_flooded[window].mean())}

    result = []
    for name, children in FOLDERS.items():
        sensor = load_sensor(name)
        for order, child in enumerate(children):
            path = Path(mask).parent.parent / child / Path(mask).name
            pixels = read_image(path, len(sensor.bands))
            is_valid = np.ones(pixels.shape[1:], bool) if name == "ombria_sar" else pixels.max(axis=0) > 0
            chip = Chip(pixels, is_valid).require_grid(is_flooded.shape, None, f"'{path}'")
            scene = f"{place}/{child}"
            result += cut_tiles(chip, sensor, grid, f"ombria/{place}", scene, order=order, labels=labels, maps=maps)
    return result
