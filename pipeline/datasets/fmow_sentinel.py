"""fMoW-Sentinel: Sentinel-2 time series of the places of Functional Map of the World, 62 classes of land use.

Cong et al., SatMAE, NeurIPS 2022. `<split>/<category>/<category>_<location>/<category>_<location>_<image>.tif` with split
train, val, test_gt: 13 bands of top-of-atmosphere reflectance x 10000 at 10 m, and `<split>.csv` beside the folders with
category, location_id, image_id, timestamp. As published, an image that its CSV does not name is left out.

Images have many sizes: a tile is the middle of one, what it lacks at the edges is not valid, and an image that fills less
than a third of it gives none. `--site-size-m 480` suits most. A location is a place; its images are ordered by time.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.chips import REFLECTANCE, cut_tiles, read_chip, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

SENSOR = "sentinel2_l1c"
CLASSES = (
    "airport", "airport_hangar", "airport_terminal", "amusement_park", "aquaculture", "archaeological_site", "barn",
    "border_checkpoint", "burial_site", "car_dealership", "construction_site", "crop_field", "dam", "debris_or_rubble",
    "educational_institution", "electric_substation", "factory_or_powerplant", "fire_station", "flooded_road", "fountain",
    "gas_station", "golf_course", "ground_transportation_station", "helipad", "hospital", "impoverished_settlement",
    "interchange", "lake_or_pond", "lighthouse", "military_facility", "multi-unit_residential", "nuclear_powerplant",
    "office_building", "oil_or_gas_facility", "park", "parking_lot_or_garage", "place_of_worship", "police_station", "port",
    "prison", "race_track", "railway_bridge", "recreational_facility", "road_bridge", "runway", "shipyard", "shopping_mall",
    "single-unit_residential", "smokestack", "solar_farm", "space_facility", "stadium", "storage_tank", "surface_mine",
    "swimming_pool", "toll_booth", "tower", "tunnel_opening", "waste_disposal", "water_treatment_facility", "wind_farm", "zoo",
)  # fmt: skip
LABELS = {"fmow": Label("class", "tile", CLASSES)}
PLACES_PER_SHARD = 64
SPLITS = {"train": "train", "val": "val", "test_gt": "test"}
COLUMNS = ("category", "location_id", "image_id", "timestamp")


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, list[tuple[str, str]]]:
    """Return {'<split>/<category>_<location>': [(timestamp, file)]} of every location with an image."""
    tables = [Path(path) for path in walk(folder, ".csv") if Path(path).stem in SPLITS]
    if not tables:
        raise InputError(f"no fMoW-Sentinel table under '{folder}'; expected {', '.join(f'{name}.csv' for name in SPLITS)}")
    found: dict[str, list[tuple[str, str]]] = {}
    for table in tables:
        split, present = table.stem, _locations(table.with_suffix(""))
        for row in _rows(table).itertuples():
            location = f"{row.category}_{row.location_id}"
            if location in present:
                path = table.with_suffix("") / str(row.category) / location / f"{location}_{row.image_id}.tif"
                found.setdefault(f"{split}/{location}", []).append((str(row.timestamp), str(path)))
    if not found:
        raise InputError(
            f"none of the locations in {', '.join(map(str, tables))} is there; expected <split>/<category>/... beside them"
        )
    return found


def splits(folder: str, found: dict[str, Any]) -> dict[str, str]:
    """Return the published split."""
    return {place: SPLITS[place.partition("/")[0]] for place in found}


def tiles(place: str, found: list[tuple[str, str]], grid: Grid) -> list[Tile]:
    """Return one tile per image of a location."""
    sensor, location = load_sensor(SENSOR), place.partition("/")[2]
    category = location.rpartition("_")[0]
    if category not in CLASSES:
        raise InputError(f"category '{category}' is none of fMoW's {len(CLASSES)}")
    label, size = float(CLASSES.index(category)), sensor.tile_shape(grid.site_size_m)[0]
    result = []
    for order, (timestamp, path) in enumerate(sorted(found)):
        chip = read_chip(path, len(sensor.bands), REFLECTANCE, placed=False)
        top, left = ((n - size) // 2 for n in chip.is_valid.shape)
        middle, time = chip.crop(top, left, (size, size)), _time(timestamp, path)
        site, scene = f"fmow_sentinel/{place}", Path(path).stem
        result += cut_tiles(middle, sensor, grid, site, scene, time, order, labels=lambda _: {"fmow": label})
    return result


def _locations(folder: Path) -> set[str]:
    """Return the names of the locations' folders, two levels below."""
    categories = sorted(os.listdir(folder)) if folder.is_dir() else []
    return {name for category in categories if (folder / category).is_dir() for name in os.listdir(folder / category)}


def _rows(table: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(table, usecols=list(COLUMNS))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{table}': {error}; expected the columns {', '.join(COLUMNS)}") from None


def _time(timestamp: str, path: str) -> datetime:
    try:
        time = datetime.fromisoformat(timestamp)
    except ValueError:
        raise InputError(f"timestamp '{timestamp}' of '{path}' is no time; expected such as 2016-07-01T10:30:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
