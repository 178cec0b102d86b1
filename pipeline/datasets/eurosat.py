"""EuroSAT: 27,000 Sentinel-2 patches of ten land-cover classes in Europe.

Helber et al., JSTARS 2019. `<class>/<class>_<number>.tif`, 64 x 64 px at 10 m, UTM, 13 bands of top-of-atmosphere
reflectance x 10000 in the order B01 ... B08, B09, B10, B11, B12, B8A (B8A last). Dates are not in the files. A patch is a
place; the usual split (16,200 / 5,400 / 5,400; Neumann et al. 2019, arXiv 1911.06721, or its spatial variant) is read from
`eurosat*-{train,val,test}.txt`, one file name a line, where these lie beside the classes.
"""

from pathlib import Path

from pipeline.archive import Label, Tile
from pipeline.chips import cut, read_chip
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor

CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
    "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
LABELS = {"eurosat": Label("class", "tile", CLASSES)}
SENSOR = "sentinel2_l1c"
FILE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> list[str]:
    """Return the patches' names."""
    found = sorted(path.stem for name in CLASSES for path in Path(folder).glob(f"**/{name}/{name}_*.tif"))
    if not found:
        raise InputError(f"no EuroSAT patch under '{folder}'; expected <class>/<class>_<number>.tif, classes {', '.join(CLASSES)}")
    return found


def splits(folder: str) -> dict[str, str]:
    """Return the split that text files beside the classes state; empty where there are none."""
    files = {path: path.stem.rpartition("-")[::2] for path in sorted(Path(folder).glob("**/eurosat*-*.txt"))}
    files = {path: found for path, found in files.items() if found[1] in ("train", "val", "test")}
    if not files:
        return {}
    kinds = sorted({kind for kind, _ in files.values()})
    if len(kinds) > 1:
        raise InputError(f"'{folder}' has the splits {', '.join(kinds)}; leave the files of one")
    stated = {Path(line).stem: split for path, (_, split) in files.items() for line in path.read_text().split()}
    if missing := [name for name in places(folder) if name not in stated]:
        raise InputError(f"{len(missing)} patches such as '{missing[0]}' are in none of the split files of '{folder}'")
    return {name: stated[name] for name in places(folder)}


def tiles(folder: str, place: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one patch, one where a site is 640 m."""
    name, sensor = place.rpartition("_")[0], load_sensor(SENSOR)
    path = next(Path(folder).glob(f"**/{name}/{place}.tif"))
    chip = read_chip(path, len(FILE_BANDS))
    stored = sensor.to_stored(sensor.to_physical(chip.pixels[[FILE_BANDS.index(band) for band in sensor.band_names]]))
    return [
        Tile(
            sensor=SENSOR,
            site=f"eurosat/{place}/{part}",
            pixels=stored[:, *window],
            is_valid=chip.is_valid[window],
            time=None,
            order=0,
            scene=place,
            labels={"eurosat": float(CLASSES.index(name))},
            **chip.place(window),
        )
        for part, window in cut(chip.is_valid.shape, sensor.tile_shape(grid.site_size_m)[0])
        if chip.is_valid[window].mean() >= 0.3
    ]
