"""OSCD, the Onera Satellite Change Detection data set: Sentinel-2 L1C crops of one city at two dates.

Caye Daudt et al., IGARSS 2018. 13 bands at their native resolutions, uint16 reflectance x 10000. The stated CRS is a
lon/lat box around a UTM window, several pixels off at the corners, so the crops are treated as chips: every band is
brought to the first date's 10 m grid, and the second date is registered to the first, in one resampling.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy import ndimage

from pipeline.archive import Label, Tile
from pipeline.chips import cut
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.raster import open_raster
from pipeline.registration import REFERENCE, Registration, match
from pipeline.sensors import Sensor, load_sensor

SENSOR = "sentinel2_l1c"
CHANGED_FRACTION = 0.005
LABELS = {"changed": Label("binary", "site"), "changed_fraction": Label("fraction", "site")}
MAX_SHIFT_M = 60.0


def sensors() -> dict[str, Sensor]:
    return {SENSOR: load_sensor(SENSOR)}


def places(folder: str) -> list[str]:
    """Return the cities that have both dates."""
    found = [p.parent.name for p in sorted(Path(folder).glob("*/meta.json")) if (p.parent / "imgs_2").is_dir()]
    if not found:
        raise InputError(f"no OSCD city under '{folder}'; expected <city>/meta.json, imgs_1/Bxx.tif, imgs_2/Bxx.tif")
    return found


def tiles(folder: str, place: str, grid: Grid) -> list[Tile]:
    """Return the tiles of one city. `changed` = at least 0.5 % of the site's pixels changed."""
    city, sensor = Path(folder) / place, load_sensor(SENSOR)
    meta = json.loads((city / "meta.json").read_text())
    with open_raster(str(city / "imgs_1" / "B02.tif")) as source:
        shape = source.shape
    first = _stack(city / "imgs_1", sensor, shape, (0.0, 0.0))
    registration = _register(city / "imgs_2", sensor, shape, first)
    shift_px = (-registration.shift_y_m / sensor.gsd_m, registration.shift_x_m / sensor.gsd_m)
    second = _stack(city / "imgs_2", sensor, shape, shift_px)
    is_changed = _read(city / "change.tif") > 0 if (city / "change.tif").is_file() else None
    size, result = sensor.tile_shape(grid.site_size_m)[0], []
    for order, (pixels, record) in enumerate(((first, REFERENCE), (second, registration))):
        is_valid = pixels.max(axis=0) > 0
        stored = sensor.to_stored(sensor.to_physical(pixels))
        time = datetime.strptime(meta[f"date_{order + 1}"], "%Y%m%d").replace(tzinfo=UTC)
        for part, window in cut(shape, size):
            if is_valid[window].mean() < 0.3:
                continue
            labels = {}
            if is_changed is not None:
                fraction = float(is_changed[window].mean())
                labels = {"changed": float(fraction >= CHANGED_FRACTION), "changed_fraction": fraction}
            result.append(
                Tile(
                    sensor=SENSOR,
                    site=f"oscd/{place}/{part}",
                    pixels=stored[:, *window],
                    is_valid=is_valid[window],
                    time=time,
                    order=order,
                    scene=f"{place}/imgs_{order + 1}",
                    registration=record,
                    labels=labels,
                )
            )
    return result


def _register(folder: Path, sensor: Sensor, shape: tuple[int, int], first: np.ndarray) -> Registration:
    visible = [sensor.band_names.index(name) for name in ("B03", "B04", "B08")]
    second = _stack(folder, sensor, shape, (0.0, 0.0), ("B03", "B04", "B08"))
    valid = [image.max(axis=0) > 0 for image in (first, second)]
    found = match(first[visible], second, valid[0], valid[1], MAX_SHIFT_M / sensor.gsd_m)
    # One shift for the whole city: its crops are small, and what is local in them is change.
    down, right = found.field.at(np.array([shape]) / 2)[0] * sensor.gsd_m if found.field else (0.0, 0.0)
    return Registration(round(float(-right), 3), round(float(down), 3), found.confidence, found.reason)


def _stack(
    folder: Path,
    sensor: Sensor,
    shape: tuple[int, int],
    shift_px: tuple[float, float],
    bands: tuple[str, ...] | None = None,
) -> np.ndarray:
    """Return (band, y, x) on the 10 m grid of `shape`, content moved by `shift_px` (rows, columns), resampled once."""
    names = bands or sensor.band_names
    return np.stack([_resample(_read(folder / f"{name}.tif"), shape, shift_px) for name in names])


def _resample(band: np.ndarray, shape: tuple[int, int], shift_px: tuple[float, float]) -> np.ndarray:
    # Pixel-is-area: centre i of the output lies at (i + 0.5 - shift) / output size of the same ground extent.
    axes = [(np.arange(n) + 0.5 - s) * m / n - 0.5 for n, s, m in zip(shape, shift_px, band.shape)]
    if band.shape == shape and shift_px == (0.0, 0.0):
        return band
    return ndimage.map_coordinates(band.astype(np.float32), np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")


def _read(path: Path) -> np.ndarray:
    with open_raster(str(path)) as source:
        return source.read(1)
