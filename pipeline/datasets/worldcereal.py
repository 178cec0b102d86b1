"""WorldCereal: monthly Sentinel-1 and Sentinel-2 series of single pixels with the crop that grows there.

Van Tricht et al., ESSD 2023. `*_timeseries.parquet`, one row a sample and month, reflectance x 10000 and
dB = 20 log10(DN) - 83, 65535 where there is none. A sample is a site of one token: `--site-size-m 40`, all pixels of a tile
alike, for one is all that is known. The first twelve months of each; a month without data is a tile without valid pixels, so
that all samples have the same dates. Crops are codes of the WorldCereal legend, the five that have a hundred samples or more of
the Canadian ones; other samples have no label. Split by `h3_l3_cell`, about 60 km wide: test regions are unseen. Regions differ in
what grows there, so val is several small ones, until each crop is in it, where there are small ones. Which these are hangs on
all regions: files that are added later may move regions between train and val.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from shapely.geometry import Point

from pipeline.chips import REFLECTANCE, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import place_on_line, split_places

CODES = (1110, 1120, 1200, 4100, 9120)
LABELS = {"crop": Label("class", "site", tuple(f"code {code}" for code in CODES))}
PLACES_PER_SHARD = 256
NUM_MONTHS = 12
REGION_SHARE, CROP_SHARE = 0.06, 0.1
NONE = 65535
COLUMNS = {
    "worldcereal_optical": tuple(f"S2-L2A-B{band}" for band in ("02", "03", "04", "05", "06", "07", "08", "11", "12")),
    "worldcereal_sar": ("S1-SIGMA0-VV", "S1-SIGMA0-VH"),
}
FACTS = ("sample_id", "timestamp", "lat", "lon", "h3_l3_cell", "CROPTYPE_LABEL")


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in COLUMNS}


def places(folder: str) -> dict[str, str]:
    """Return {sample: its file} of the samples that have twelve months."""
    found: dict[str, str] = {}
    for path in walk(folder, "_timeseries.parquet"):
        table = _read(path, Path(path).stat().st_mtime_ns)
        counts = table.groupby(level=0).size()
        found |= dict.fromkeys(map(str, counts.index[counts >= NUM_MONTHS]), path)
    if not found:
        raise InputError(
            f"no WorldCereal series under '{folder}'; expected <name>_timeseries.parquet with a row a sample and month"
        )
    return found


def splits(folder: str, found: dict[str, str]) -> dict[str, str]:
    """Return the split of each sample: that of its region."""
    facts = [_read(path, Path(path).stat().st_mtime_ns)[["h3_l3_cell", "CROPTYPE_LABEL"]] for path in sorted(set(found.values()))]
    table = pd.concat(facts).groupby(level=0).first().loc[list(found)]
    split = split_places(found, table["h3_l3_cell"].__getitem__)
    if held := _held_regions(table[table.index.map(split) != "test"]):
        split |= {p: "val" if table["h3_l3_cell"][p] in held else "train" for p in found if split[p] != "test"}
    return split


def _held_regions(table: pd.DataFrame) -> set[str]:
    """Return regions with few samples each and together enough of each crop, in the order of their hashes."""
    counts = pd.crosstab(table["h3_l3_cell"], table["CROPTYPE_LABEL"]).reindex(columns=list(CODES), fill_value=0)
    sizes = table["h3_l3_cell"].value_counts()
    held: set[str] = set()
    for region in sorted(sizes.index[sizes <= REGION_SHARE * len(table)], key=lambda name: place_on_line(f"val/{name}")):
        lacking = counts.columns[counts.loc[list(held)].sum() < CROP_SHARE * counts.sum()]
        if counts.loc[region, lacking].any():
            held.add(region)
    return held


def tiles(place: str, path: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one sample, one for each month and sensor."""
    months = _read(path, Path(path).stat().st_mtime_ns).loc[[place]].sort_values("timestamp").iloc[:NUM_MONTHS]
    first = months.iloc[0]
    code = int(first["CROPTYPE_LABEL"])
    labels = {"crop": float(CODES.index(code))} if code in CODES else {}
    result = []
    for name, columns in COLUMNS.items():
        sensor = load_sensor(name)
        size = sensor.tile_shape(grid.site_size_m)
        numbers = months[list(columns)].to_numpy(np.float64)
        is_known = (numbers != NONE).all(1)
        physical = numbers * REFLECTANCE if name == "worldcereal_optical" else 20 * np.log10(numbers) - 83
        stored = sensor.to_stored(np.where(is_known[:, None], physical, 0).astype(np.float32))
        for order, (values, known, time) in enumerate(zip(stored, is_known, months["timestamp"])):
            pixels = np.broadcast_to(values[:, None, None], (len(columns), *size)).copy()
            when = time.tz_localize("UTC").to_pydatetime()
            point = Point(first["lon"], first["lat"])
            result.append(
                Tile(name, f"worldcereal/{place}", pixels, np.full(size, known), when, order, place, geometry=point, labels=labels)
            )
    return result


@lru_cache(maxsize=1)
def _read(path: str, _: int) -> pd.DataFrame:
    """Return the months by sample; read again when the file's time is another."""
    needed = [*FACTS, *(column for columns in COLUMNS.values() for column in columns)]
    try:
        table = pd.read_parquet(path, columns=needed)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read '{path}': {' '.join(str(error).split())[:200]}") from None
    return table.set_index("sample_id").sort_index()
