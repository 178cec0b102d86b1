"""Files of a planet: scenes as their sensors store them, cloud masks, and what is true on the ground."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from pipeline.sensors import Sensor
from pipeline.simulation.acquisitions import Acquisition, moment
from pipeline.simulation.config import CHANGE_DAY, YEAR
from pipeline.simulation.frame import Frame, Grid
from pipeline.simulation.imaging import Clouds, Sampler, detect, sampler, strips
from pipeline.simulation.planet import CLASSES, TRUTH_M, Planet


def write_scene(
    path: Path,
    sensor: Sensor,
    acquisition: Acquisition,
    grid: Grid,
    size_m: float,
    sample: Sampler,
    draw: np.random.Generator,
) -> None:
    """Sample, add the detector's own noise, store as the sensor's dtype; unseen pixels hold the file's nodata value."""
    nodata = -32768 if sensor.dtype == "int16" else 0
    with _geotiff(path, grid, len(sensor.bands), sensor.dtype, nodata) as file:
        file.descriptions = sensor.band_names
        file.scales, file.offsets = (sensor.scale,) * file.count, (sensor.offset,) * file.count
        file.update_tags(SENSOR=sensor.name, DATETIME=acquisition.time.isoformat())
        for rows in strips(grid.shape):
            planet_m = grid.planet_m(rows)
            counts = sensor.to_stored(detect(sample(planet_m), sensor, draw))
            np.maximum(counts, nodata + 1, out=counts)
            is_seen = acquisition.sees(planet_m, size_m)
            if not is_seen.all():
                counts[:, ~is_seen] = nodata
            file.write(counts, window=Window(0, rows.start, grid.shape[1], rows.stop - rows.start))


def write_mask(path: Path, acquisition: Acquisition, grid: Grid, size_m: float, clouds: Clouds) -> float:
    """Write 0 clear, 1 cloud, 2 cloud shadow; return the cloud fraction of the pixels seen."""
    sample = sampler(np.stack([clouds.cloud, clouds.shadow]), TRUTH_M, order=1)
    num_seen = num_cloudy = 0
    with _geotiff(path, grid, 1, "uint8", None) as file:
        file.update_tags(DATETIME=acquisition.time.isoformat())
        for rows in strips(grid.shape):
            planet_m = grid.planet_m(rows)
            cloud, shadow = sample(planet_m) > 0.2
            is_seen = acquisition.sees(planet_m, size_m)
            mask = np.where(cloud, 1, np.where(shadow, 2, 0)) * is_seen
            file.write(mask.astype(np.uint8), 1, window=Window(0, rows.start, grid.shape[1], rows.stop - rows.start))
            num_seen, num_cloudy = num_seen + int(is_seen.sum()), num_cloudy + int((cloud & is_seen).sum())
    return round(num_cloudy / max(num_seen, 1), 4)


def write_truth(folder: Path, planet: Planet, frame: Frame) -> None:
    grid = Grid(frame.crs, frame.transform(TRUTH_M), planet.elevation_m.shape, (np.zeros(0), np.zeros(0)))
    epochs = {moment(YEAR, 1, 0): planet.before} | ({moment(YEAR, CHANGE_DAY, 0): planet.after} if planet.changes else {})
    for since, surface in epochs.items():
        with _geotiff(folder / f"landcover_{since:%Y%m%d}.tif", grid, 1, "uint8", 255) as file:
            file.update_tags(CLASSES=json.dumps(CLASSES), DATETIME=since.isoformat())
            file.write(surface.classes, 1)
    with _geotiff(folder / "elevation.tif", grid, 1, "float32", None) as file:
        file.write(planet.elevation_m, 1)
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {
                "kind": change.kind,
                "before": CLASSES[change.before],
                "after": CLASSES[change.after],
                "time": moment(YEAR, CHANGE_DAY, 0).isoformat(),
            },
        }
        for change in planet.changes
        for geometry in change.polygons(grid.transform)
    ]
    name = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{frame.crs.to_epsg()}"}}
    collection = {"type": "FeatureCollection", "crs": name, "features": features}
    write_text(folder / "changes.geojson", json.dumps(collection))


class _geotiff:
    """A tiled GeoTIFF open for writing under a temporary name, that takes its own name only once complete."""

    def __init__(self, path: Path, grid: Grid, num_bands: int, dtype: str, nodata: float | None) -> None:
        self._path, self._partial = path, path.with_suffix(".partial")
        height, width = grid.shape
        self._file = rasterio.open(
            self._partial, "w", driver="GTiff", height=height, width=width, count=num_bands, dtype=dtype, nodata=nodata,
            crs=grid.crs.to_wkt(), transform=grid.transform, tiled=True, blockxsize=256, blockysize=256, interleave="band",
            compress="deflate", zlevel=1, predictor=3 if dtype == "float32" else 2, num_threads=2,
        )  # fmt: skip

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, failure: Any, *_: Any) -> None:
        self._file.close()
        if failure is None:
            self._partial.rename(self._path)


def write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)
