"""Small rasters whose every number is known, written where and how a test wants them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from pipeline.scan import Given, scan
from pipeline.scene import Scene
from pipeline.stac import read_scenes, write_catalog

WEST, NORTH = 640_000, 5_290_240
TIME = datetime(2020, 5, 4, 10, 30, tzinfo=UTC)
RADAR_TAGS = {"SENSOR": "sentinel1_grd", "DATETIME": TIME.isoformat()}
OPTICAL = "S2A_MSIL2A_20170617T113321_36_85"


def write(path: Path, pixels: np.ndarray, gsd_m: float = 10, **options: Any) -> Path:
    """Write (band, y, x) with its north-west corner at (WEST, NORTH) of EPSG:32632 unless told otherwise."""
    tags, names = options.pop("tags", {}), options.pop("names", ())
    scales, offsets = options.pop("scale", None), options.pop("offset", None)
    profile = {"crs": "EPSG:32632", "transform": from_origin(WEST, NORTH, gsd_m, gsd_m)} | options
    count, height, width = pixels.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **profile) as file:
        file.write(pixels)
        file.update_tags(**tags)
        if names:
            file.descriptions = names
        if scales is not None:
            file.scales, file.offsets = (scales,) * count, (offsets,) * count
    return path


def counts(seed: int = 0, bands: int = 2, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(-2500, -500, (bands, size, size)).astype(np.int16)


def grid(size: int = 64, gsd_m: float = 10, west: float = WEST, north: float = NORTH) -> GeoBox:
    return GeoBox((size, size), from_origin(west, north, gsd_m, gsd_m), "EPSG:32632")


def only(folder: Path, **options: Any) -> Scene:
    """Scan `folder`, go through a catalog file, and return its one scene."""
    items, refused = scan(str(folder), Given(**options))
    assert refused == {}
    write_catalog(items, str(folder / "scenes.json"))
    scenes, refused = read_scenes(str(folder))
    assert refused == {}
    (scene,) = scenes
    return scene
