"""LEVIR-CD and LEVIR-CD+: pairs of aerial colour images of places in Texas, years apart, with the buildings that changed.

Chen & Shi, Remote Sensing 2020. `A/<name>.png`, `B/<name>.png` (8-bit colour of about 0.5 m, no georeference, no dates) and
`label/<name>.png` (255 changed), 1024 x 1024 px (`--site-size-m 512`, or 128 for 256 px). The published split is that of the
folders `train/A` or of the names `A/train_1.png`; LEVIR-CD+ has no 'val', a fifth of its train pairs become it.
"""

from pathlib import Path

import numpy as np

from pipeline.chips import Chip, cut_tiles, read_image, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, map_of
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import hold_out

SENSOR = "levir_rgb"
LABELS = {"building_change": Label("map", "site", ("same", "changed"))}
PLACES_PER_SHARD = 8
SPLITS = ("train", "val", "test")


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, str]:
    """Return {'<split>/<name>': image of the first date}."""
    found = {f"{_split_of(path)}/{path.stem}": str(path) for path in map(Path, walk(folder, ".png")) if path.parent.name == "A"}
    if not found:
        raise InputError(f"no LEVIR-CD pair under '{folder}'; expected A/<name>.png, B/<name>.png, label/<name>.png")
    return found


def splits(folder: str, found: dict[str, str]) -> dict[str, str]:
    """Return the published split."""
    stated = {place: place.partition("/")[0] for place in found}
    return stated if "val" in stated.values() else hold_out(stated)


def tiles(place: str, first: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one pair."""
    name, root = Path(first).name, Path(first).parents[1]
    change = map_of(read_image(root / "label" / name, 1)[0], {0: 0, 255: 1}, name=f"'{root / 'label' / name}'")
    sensor, result = load_sensor(SENSOR), []
    for order, date in enumerate("AB"):
        pixels = read_image(root / date / name, len(sensor.bands))
        chip = Chip(pixels, np.ones(pixels.shape[1:], bool)).require_grid(change.classes.shape, None, f"'{root / date / name}'")
        scene, maps = f"{place}/{date}", {"building_change": change}
        result += cut_tiles(chip, sensor, grid, f"levir_cd/{place}", scene, order=order, maps=maps)
    return result


def _split_of(path: Path) -> str:
    stated = {path.parents[1].name, path.stem.partition("_")[0]} & set(SPLITS)
    if len(stated) != 1:
        raise InputError(f"'{path}' does not say its split; expected train/A/<name>.png or A/train_<number>.png")
    return stated.pop()
