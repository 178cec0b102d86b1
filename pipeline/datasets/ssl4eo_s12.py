"""SSL4EO-S12: Sentinel-1, Sentinel-2 L1C and L2A of 251,079 places in four seasons, for pretraining; no labels.

Wang et al., GRSM 2023, arXiv 2211.07044. `{s1,s2c,s2a}/<location>/<product>/<band>.tif`, 2640 x 2640 m
(`--site-size-m 2640`, 660 or 240): 264, 132 or 44 px for bands of 10, 20 and 60 m. Sentinel-1 in dB, Sentinel-2 as
reflectance x 10000. A location is a place; its seasons are ordered by their dates, each sensor on its own. There is no
published split: locations, which do not overlap but may be neighbours, are split by the hashes of their names.
"""

import os
import re
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from pipeline.chips import REFLECTANCE, cut_tiles, read_bands
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

LABELS: dict[str, Label] = {}
PLACES_PER_SHARD = 8
KINDS = {"s1": ("sentinel1_grd", 1.0), "s2c": ("sentinel2_l1c", REFLECTANCE), "s2a": ("sentinel2_l2a", REFLECTANCE)}
LOCATION = re.compile(r"\d{7}")
TIME = re.compile(r"\d{8}T\d{6}")


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name, _ in KINDS.values()}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {location: {kind: its folder}}."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for kind in KINDS:
        for parent in [Path(folder) / kind, *sorted(Path(folder).glob(f"*/{kind}"))]:
            for name in sorted(os.listdir(parent)) if parent.is_dir() else ():
                if LOCATION.fullmatch(name):
                    found[name][kind] = str(parent / name)
    if not found:
        raise InputError(f"no SSL4EO-S12 location under '{folder}'; expected <{'|'.join(KINDS)}>/0000000/<product>/<band>.tif")
    return dict(sorted(found.items()))


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of all sensors and seasons of one location."""
    result = []
    for kind, folder in found.items():
        name, scale = KINDS[kind]
        sensor = load_sensor(name)
        files = [f"{band.replace('B0', 'B')}.tif" for band in sensor.band_names]
        for order, (time, product) in enumerate(sorted(_seasons(Path(folder)))):
            chip = read_bands([product / file for file in files], scale)
            result += cut_tiles(chip, sensor, grid, f"ssl4eo_s12/{place}", product.name, time, order)
    return result


def _seasons(location: Path) -> list[tuple[datetime, Path]]:
    found = []
    for product in location.iterdir():
        match = TIME.search(product.name)
        if match is None:
            raise InputError(f"folder '{product}' has no time in its name; expected a product such as 20200713T102031_...")
        found.append((datetime.strptime(match[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC), product))
    return found
