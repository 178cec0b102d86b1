"""SpaceNet 2: WorldView-3 panchromatic and multispectral chips of Las Vegas, Paris, Shanghai and Khartoum, for sharpening.

Van Etten et al. 2018, arXiv 1807.01232. `AOI_<n>_<city>_<Train|Test_Public>/{PAN,MUL}/{PAN,MUL}_AOI_<n>_<city>_img<number>.tif`
in EPSG:4326, uint16 digital numbers: PAN 650 x 650 px of 0.3 m, MUL 8 bands of 162 or 163 px of 1.2 m (`--site-size-m 192`,
96 or 48). The two are cut to slightly other ground: PAN is cut again to that of the MUL pixels, at whole PAN pixels, so half
of one (0.15 m) is the most they are apart. A pixel of zero in all bands is no data. Building outlines are not read.

There is no published split of both images with labels: squares of a fiftieth of a degree (about 2 km) go to one split.
"""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.chips import Chip, cut_tiles, read_chip, walk
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import ground_squares, split_places

LABELS: dict[str, Label] = {}
PAN, MS = "worldview3_pan", "worldview3_ms"
PLACES_PER_SHARD = 64
NAME = re.compile(r"(?P<kind>PAN|MUL)_(?P<chip>AOI_\d_[A-Za-z]+_img\d+)\.tif")
SQUARE_DEG = 0.02


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in (PAN, MS)}


def places(folder: str) -> dict[str, dict[str, str]]:
    """Return {chip: {'PAN': file, 'MUL': file}} of the chips that have either."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in walk(folder, ".tif"):
        if match := NAME.fullmatch(Path(path).name):
            found[match["chip"]][match["kind"]] = path
    if not found:
        raise InputError(f"no SpaceNet 2 chip under '{folder}'; expected PAN/PAN_AOI_<n>_<city>_img<number>.tif and MUL/MUL_...")
    return dict(found)


def splits(folder: str, found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return a split by squares of ground."""
    squares = ground_squares({chip: next(iter(files.values())) for chip, files in found.items()}, SQUARE_DEG)
    return split_places(found, squares.__getitem__)


def tiles(place: str, found: dict[str, str], grid: Grid) -> list[Tile]:
    """Return the tiles of one chip's two images."""
    if missing := {"PAN", "MUL"} - found.keys():
        raise InputError(f"chip '{place}' has no {missing.pop()} image; expected PAN_{place}.tif and MUL_{place}.tif")
    site, ms = f"spacenet2/{place}", read_chip(found["MUL"], 8, zeros="all")
    pan = _on_ground_of(ms, read_chip(found["PAN"], 1), found["PAN"])
    return [
        *cut_tiles(ms, load_sensor(MS), grid, site, f"MUL_{place}"),
        *cut_tiles(pan, load_sensor(PAN), grid, site, f"PAN_{place}"),
    ]


def _on_ground_of(ms: Chip, pan: Chip, path: str) -> Chip:
    """Return the panchromatic pixels under the multispectral ones."""
    assert ms.transform, "read_chip gives placed chips"
    assert pan.transform, "read_chip gives placed chips"
    ratio = load_sensor(MS).gsd_m / load_sensor(PAN).gsd_m
    found = np.array([ms.transform.a / pan.transform.a, ms.transform.e / pan.transform.e])
    if np.abs(found / ratio - 1).max() > 0.01:
        raise InputError(f"'{path}' has pixels {found[0]:.2f} times finer than the MUL image, expected {ratio:g}")
    column, row = ~pan.transform @ (ms.transform.c, ms.transform.f)
    height, width = (int(n * ratio) for n in ms.is_valid.shape)
    return pan.crop(round(row), round(column), (height, width))
