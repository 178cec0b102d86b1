"""OMBRIA: paired Sentinel-1 and Sentinel-2 chips before and after floods, with flood masks.

Drakonakis et al., "OmbriaNet", IEEE JSTARS 2022. 8-bit stretched PNGs without georeference or dates, 256 x 256 px;
same name in every folder = same place. Either one set of folders or several sets side by side (train/, event_x/).
"""

from pathlib import Path

import numpy as np

from pipeline.archive import Label, Tile
from pipeline.chips import cut, read_image
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor

LABELS = {"flooded_fraction": Label("fraction", "site")}
FOLDERS = {"ombria_sar": ("s1_before", "s1_after"), "ombria_optical": ("s2_before", "s2_after")}


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in FOLDERS}


def places(folder: str) -> list[str]:
    """Return '<set>/<name>' of every place that has all five images."""
    root = Path(folder)
    masks = sorted([*root.glob("flood_mask/*.png"), *root.glob("*/flood_mask/*.png")])
    needed = [name for pair in FOLDERS.values() for name in pair]
    complete = [m for m in masks if all((m.parent.parent / name / m.name).is_file() for name in needed)]
    if not complete:
        raise InputError(f"no OMBRIA place under '{folder}'; expected flood_mask, {', '.join(needed)} with the same PNG names")
    return [str(m.parent.parent.relative_to(root) / m.stem) for m in complete]


def tiles(folder: str, place: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one place; black pixels of the optical chips are no data."""
    base, name = Path(folder) / Path(place).parent, f"{Path(place).name}.png"
    is_flooded = read_image(base / "flood_mask" / name)[0] > 0
    result = []
    for sensor, children in FOLDERS.items():
        size = load_sensor(sensor).tile_shape(grid.site_size_m)[0]
        for order, child in enumerate(children):
            pixels = read_image(base / child / name)[: 1 if sensor == "ombria_sar" else 3]
            is_valid = np.ones(pixels.shape[1:], bool) if sensor == "ombria_sar" else pixels.max(axis=0) > 0
            for part, window in cut(is_flooded.shape, size):
                if is_valid[window].mean() < 0.3:
                    continue
                result.append(
                    Tile(
                        sensor=sensor,
                        site=f"ombria/{place}/{part}",
                        pixels=pixels[:, *window].copy(),
                        is_valid=is_valid[window].copy(),
                        time=None,
                        order=order,
                        scene=f"{place}/{child}",
                        labels={"flooded_fraction": float(is_flooded[window].mean())},
                    )
                )
    return result
