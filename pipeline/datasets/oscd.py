"""OSCD, the Onera Satellite Change Detection data set: Sentinel-2 L1C crops of one city at two dates.

Caye Daudt et al., IGARSS 2018. `<city>/imgs_1` and `imgs_2` with one file per band at its native resolution (`..._B01.tif`
or `B01.tif`), uint16 reflectance x 10000; dates in `dates.txt` or `meta.json`; change in `<city>/cm/cm.png` or
`change.tif` on the first date's 10 m grid, beside the images or in the folder of labels. Site sizes that divide the crops
of 180 to 800 px well: `--site-size-m 640` or 960.

The stated CRS is a lon/lat box around a UTM window, several pixels off at the corners, so the crops are treated as chips:
every band is brought to the first date's 10 m grid, and the second date is registered to the first, in one resampling.

Split: the published 14 and 10 cities; a fifth of the first is 'val'. Labels of the 10 are a download of their own: where
none of them is there, the labelled cities are split by the hashes of their names, so that there is something to test on.
"""

import re
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chips import REFLECTANCE, Chip, Window, cut_tiles, read_bands, read_image, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap
from pipeline.registration import REFERENCE, Registration, match
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import hold_out, split_places

SENSOR = "sentinel2_l1c"
CHANGED_FRACTION = 0.005
LABELS = {
    "changed": Label("binary", "site"),
    "changed_fraction": Label("fraction", "site"),
    "change": Label("map", "site", ("same", "changed")),
}
MAX_SHIFT_M = 60.0
BAND = re.compile(r"(?:^|_)(B\d\d|B8A)\.tif$")
DATE = re.compile(r"date_([12])\W+(\d{8})")
CITIES = {
    "train": "abudhabi aguasclaras beihai beirut bercy bordeaux cupertino hongkong mumbai nantes paris pisa rennes saclay_e",
    "test": "brasilia chongqing dubai lasvegas milano montpellier norcia rio saclay_w valencia",
}


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> dict[str, dict[str, Any]]:
    """Return {city: its files} of the cities that have both dates."""
    found: dict[str, dict[str, Any]] = defaultdict(lambda: {"imgs_1": {}, "imgs_2": {}})
    for path in map(Path, walk(folder, ".tif", ".json", ".txt", ".png")):
        if path.parent.name in ("imgs_1", "imgs_2") and (band := BAND.search(path.name)):
            found[path.parents[1].name][path.parent.name][band[1]] = str(path)
        elif path.name in ("meta.json", "dates.txt"):
            found[path.parent.name]["dates"] = str(path)
        elif path.name == "change.tif":
            found[path.parent.name]["change"] = str(path)
        elif path.name == "cm.png":
            found[path.parents[1].name]["change"] = str(path)
    complete = {city: files for city, files in found.items() if files["imgs_1"] and files["imgs_2"]}
    if not complete:
        raise InputError(f"no OSCD city under '{folder}'; expected <city>/imgs_1/..B01.tif, imgs_2/..B01.tif and dates.txt")
    return complete


def splits(folder: str, found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the split of each city."""
    stated = {city: split for split, cities in CITIES.items() for city in cities.split()}
    if unknown := [city for city in found if city not in stated]:
        raise InputError(f"city '{unknown[0]}' under '{folder}' is none of OSCD's {len(stated)} ({', '.join(sorted(stated))})")
    published = {city: stated[city] for city in found}
    labelled = [city for city in found if "change" in found[city]]
    if labelled and "test" not in {published[city] for city in labelled}:
        return published | split_places(labelled)
    return hold_out(published)


def tiles(place: str, found: dict[str, Any], grid: Grid) -> list[Tile]:
    """Return the tiles of one city. `changed` = at least 0.5 % of the site's pixels changed."""
    sensor, dates = load_sensor(SENSOR), _dates(place, found)
    first = _read(place, found["imgs_1"], sensor.band_names)
    registration = _register(place, found["imgs_2"], sensor, first)
    shift_px = (-registration.shift_y_m / sensor.gsd_m, registration.shift_x_m / sensor.gsd_m)
    second = _read(place, found["imgs_2"], sensor.band_names, first.is_valid.shape, shift_px)
    maps = _change(found["change"], first) if "change" in found else {}

    def labels(window: Window) -> dict[str, float]:
        fractions = [float(change[window].classes.mean()) for change in maps.values()]
        return {"changed": float(fractions[0] >= CHANGED_FRACTION), "changed_fraction": fractions[0]} if fractions else {}

    result = []
    for order, (chip, record) in enumerate(((first, REFERENCE), (second, registration))):
        scene = f"{place}/imgs_{order + 1}"
        result += cut_tiles(chip, sensor, grid, f"oscd/{place}", scene, dates[order], order, record, labels, maps)
    return result


def _dates(city: str, found: dict[str, Any]) -> list[datetime]:
    if "dates" not in found:
        raise InputError(f"city '{city}' has neither dates.txt nor meta.json; expected its two dates there")
    days = dict(DATE.findall(Path(found["dates"]).read_text()))
    if days.keys() != {"1", "2"}:
        raise InputError(f"'{found['dates']}' does not say date_1 and date_2 as YYYYMMDD")
    return [datetime.strptime(days[number], "%Y%m%d").replace(tzinfo=UTC) for number in "12"]


def _change(path: str, first: Chip) -> dict[str, LabelMap]:
    is_changed = read_image(path, 1)[0] > 0
    first.require_grid(is_changed.shape, None, f"the first date of '{path}'")
    return {"change": LabelMap(is_changed.astype(np.uint8), np.ones_like(is_changed))}


def _register(city: str, files: dict[str, str], sensor: Sensor, first: Chip) -> Registration:
    bands = ("B03", "B04", "B08")
    second = _read(city, files, bands, first.is_valid.shape)
    visible = first.pixels[[sensor.band_names.index(name) for name in bands]]
    found = match(visible, second.pixels, first.is_valid, second.is_valid, MAX_SHIFT_M / sensor.gsd_m)
    # One shift for the whole city: its crops are small, and what is local in them is change.
    down, right = found.field.at(np.array([first.is_valid.shape]) / 2)[0] * sensor.gsd_m if found.field else (0.0, 0.0)
    return Registration(round(float(-right), 3), round(float(down), 3), found.confidence, found.reason)


def _read(
    city: str,
    files: dict[str, str],
    bands: tuple[str, ...],
    shape: tuple[int, ...] | None = None,
    shift_px: tuple[float, float] = (0.0, 0.0),
) -> Chip:
    """Return one date without its misleading CRS."""
    if missing := [name for name in bands if name not in files]:
        raise InputError(f"city '{city}' lacks band {', '.join(missing)} of a date (has {', '.join(sorted(files))})")
    chip = read_bands([files[name] for name in bands], REFLECTANCE, placed=False, shape=shape, shift_px=shift_px)
    return replace(chip, crs=None, transform=None)
