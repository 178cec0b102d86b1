"""What layouts of ready-made chips share: reading them and cutting them into tiles.

Decides which pixels of a chip are data and how a chip becomes tiles; which files make a chip, and in which unit they are,
is decided by each layout.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from odc.geo.geobox import GeoBox
from PIL import Image, UnidentifiedImageError
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from scipy import ndimage

from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import LabelMap
from pipeline.raster import open_raster
from pipeline.registration import REFERENCE, Registration
from pipeline.sensors import Sensor
from pipeline.shard import Tile

MIN_VALID_FRACTION = 0.3
REFLECTANCE = 1e-4  # Sentinel-2 files hold reflectance x 10000

Window = tuple[slice, slice]
Zeros = Literal["any", "all", "data"]


def cut(shape_px: tuple[int, ...], size_px: int) -> Iterator[tuple[str, Window]]:
    """Yield ('r<row>c<column>', window) for each whole `size_px` square; a narrower rest is left out."""
    for i in range(shape_px[0] // size_px):
        for j in range(shape_px[1] // size_px):
            yield f"r{i}c{j}", (slice(i * size_px, (i + 1) * size_px), slice(j * size_px, (j + 1) * size_px))


@dataclass(frozen=True)
class Chip:
    """One image: pixels (band, y, x), where they are data (y, x), and its place where it has one.

    pixels * `scale` (a number, or one per band) is in the sensor's unit.
    """

    pixels: np.ndarray
    is_valid: np.ndarray
    scale: float | np.ndarray = 1.0
    crs: str | None = None
    transform: Affine | None = None

    def place(self, window: Window) -> dict[str, Any]:
        """Return what a `Tile` says of where a window of the chip lies."""
        if self.crs is None or self.transform is None:
            return {}
        part = self.transform @ Affine.translation(window[1].start, window[0].start)
        grid = GeoBox((window[0].stop - window[0].start, window[1].stop - window[1].start), part, self.crs)
        return {"crs": self.crs, "transform": tuple(part)[:6], "geometry": grid.extent.to_crs("EPSG:4326").geom}

    def stored(self, sensor: Sensor, window: Window) -> np.ndarray:
        """Return a window in the sensor's stored dtype, zero where there is no data."""
        physical = self.pixels[:, *window] * np.reshape(self.scale, (-1, 1, 1))
        return sensor.to_stored(np.where(self.is_valid[window], physical, 0))

    def crop(self, row: int, column: int, shape: tuple[int, int]) -> "Chip":
        """Return `shape` (y, x) pixels from (row, column) on; what lies outside the chip is not valid."""
        pixels, is_valid = np.zeros((len(self.pixels), *shape), self.pixels.dtype), np.zeros(shape, bool)
        ends = [min(start + n, size) for start, n, size in zip((row, column), shape, self.is_valid.shape)]
        source = tuple(slice(max(start, 0), max(end, 0)) for start, end in zip((row, column), ends))
        target = tuple(slice(s.start - start, s.stop - start) for s, start in zip(source, (row, column)))
        pixels[:, *target], is_valid[target] = self.pixels[:, *source], self.is_valid[source]
        moved = self.transform @ Affine.translation(column, row) if self.transform else None
        return replace(self, pixels=pixels, is_valid=is_valid, transform=moved)

    def require_grid(self, shape: tuple[int, ...], transform: Affine | None, what: str) -> "Chip":
        """Return this chip, which must lie as `shape` (y, x) and `transform` say; `what` names it in the error."""
        if self.is_valid.shape != shape:
            raise InputError(f"{what} is {_size(self.is_valid.shape)}, expected {_size(shape)} as what belongs to it")
        if self.transform and transform:
            corners = np.array([[0, 0], [shape[1], 0], [0, shape[0]]])
            apart_px = max(np.hypot(*np.subtract(~transform @ (self.transform @ tuple(c)), c)) for c in corners)
            if apart_px > 0.5:
                raise InputError(f"{what} lies {apart_px:.1f} px from what belongs to it, expected the same grid")
        return self

    def require_ground(self, other: "Chip", what: str) -> None:
        """Refuse a chip that does not cover the ground of `other`, whatever the pixel size of the two."""
        if self.crs != other.crs:
            raise InputError(f"{what} is in {self.crs}, expected {other.crs} as what belongs to it")
        if self.transform:
            rows, columns = np.divide(self.is_valid.shape, other.is_valid.shape)
            on_its_grid = replace(other, transform=self.transform @ Affine.scale(columns, rows))
            on_its_grid.require_grid(other.is_valid.shape, other.transform, what)


def cut_tiles(
    chip: Chip,
    sensor: Sensor,
    grid: Grid,
    site: str,
    scene: str,
    time: datetime | None = None,
    order: int = 0,
    registration: Registration = REFERENCE,
    labels: Callable[[Window], Mapping[str, float | list[int]]] = lambda _: {},
    maps: Mapping[str, LabelMap] | None = None,
) -> list[Tile]:
    """Return the tiles of a chip; windows that are mostly no data are left out. `labels` says those of a window."""
    size = sensor.tile_shape(grid.site_size_m)[0]
    if min(chip.is_valid.shape) < size:
        largest = min(chip.is_valid.shape) * sensor.gsd_m
        raise InputError(
            f"'{scene}' is {_size(chip.is_valid.shape)}, a site of {grid.site_size_m:g} m needs {size}; "
            f"give --site-size-m of at most {largest:g}"
        )
    return [
        Tile(
            sensor=sensor.name,
            site=f"{site}/{part}",
            pixels=chip.stored(sensor, window),
            is_valid=chip.is_valid[window].copy(),
            time=time,
            order=order,
            scene=scene,
            registration=registration,
            labels=labels(window),
            maps={name: found[window] for name, found in (maps or {}).items()},
            **chip.place(window),
        )
        for part, window in cut(chip.is_valid.shape, size)
        if chip.is_valid[window].mean() >= MIN_VALID_FRACTION
    ]


def walk(folder: str, *suffixes: str) -> list[str]:
    """Return the paths of all files under `folder` whose names end in one of `suffixes`, sorted."""
    found = (
        os.path.join(root, name)
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(suffixes)
    )
    return sorted(found)


def read_chip(path: str | Path, num_bands: int, scale: float = 1.0, zeros: Zeros = "any", placed: bool = True) -> Chip:
    """Return a GeoTIFF chip; pixels that are nodata or not finite in any band are not valid.

    `zeros` says which pixels of zero are none either, in a file that states no nodata: those with a zero in 'any' band
    (no reflectance and no dB is exactly zero, but missing bands are filled so), in 'all' bands, or none ('data').
    `placed` chips must have a CRS.
    """
    with open_raster(str(path)) as source:
        if source.count != num_bands:
            raise InputError(f"'{path}' has {source.count} bands, expected {num_bands}")
        if source.crs is None and placed:
            raise InputError(f"'{path}' has no CRS; expected a georeferenced chip")
        try:
            pixels, nodata = source.read(), source.nodata
        except RasterioError as error:
            raise InputError(f"cannot read '{path}': {str(error).splitlines()[0]}") from None
        crs, transform = (str(source.crs), source.transform) if source.crs else (None, None)
    is_valid = np.isfinite(pixels).all(axis=0)
    if nodata is not None and np.isfinite(nodata):
        is_valid &= (pixels != nodata).all(axis=0)
    elif zeros != "data":
        is_valid &= (pixels != 0).all(axis=0) if zeros == "any" else (pixels != 0).any(axis=0)
    return Chip(pixels, is_valid, scale, crs, transform)


def read_bands(
    paths: Iterable[str | Path],
    scale: float = 1.0,
    placed: bool = True,
    shape: tuple[int, ...] | None = None,
    shift_px: tuple[float, float] = (0.0, 0.0),
) -> Chip:
    """Return files of one band each, which cover the same ground, as one chip on the finest of their grids.

    `shape` (y, x) is another grid of that ground; `shift_px` (rows, columns) moves the content, in the same resampling. A
    pixel with missing data in any band is not valid.
    """
    files = {str(path): read_chip(path, 1, scale, placed=placed) for path in paths}
    bands, finest = files.values(), max(files.values(), key=lambda band: band.is_valid.size)
    for path, band in files.items() if placed else ():
        band.require_ground(finest, f"'{path}'")
    shape = shape or finest.is_valid.shape
    pixels = np.stack([resample(band.pixels[0], shape, shift_px) for band in bands])
    is_valid = np.all([resample(band.is_valid, shape, shift_px) > 0.999 for band in bands], axis=0)
    centres = [np.arange(n) + 0.5 - shift for n, shift in zip(shape, shift_px)]
    is_covered = np.logical_and.outer(*((c >= 0) & (c <= n) for c, n in zip(centres, shape)))
    return Chip(pixels, is_valid & is_covered, scale, finest.crs, finest.transform)


def resample(band: np.ndarray, shape: tuple[int, ...], shift_px: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return a band on another grid of the same ground, its content moved by `shift_px` of it; pixel-is-area, bilinear."""
    if band.shape == shape and shift_px == (0.0, 0.0):
        return band
    # Centre i of the output lies at (i + 0.5 - shift) / output size of the same ground extent.
    axes = [(np.arange(n) + 0.5 - s) * m / n - 0.5 for n, s, m in zip(shape, shift_px, band.shape)]
    return ndimage.map_coordinates(band.astype(np.float32), np.meshgrid(*axes, indexing="ij"), order=1, mode="nearest")


def read_image(path: str | Path, num_bands: int) -> np.ndarray:
    """Return the first bands of a PNG or JPEG as (band, y, x) in its own dtype."""
    try:
        pixels = np.asarray(Image.open(path))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow says SyntaxError of a broken PNG
        raise InputError(f"cannot read '{path}': {error}") from None
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if len(pixels) < num_bands:
        raise InputError(f"'{path}' has {len(pixels)} bands, expected {num_bands}")
    return pixels[:num_bands]


def require_folder(folder: str, *children: str) -> Path:
    """Return `folder` as a path, or say which of its expected children is missing."""
    root = Path(folder)
    missing = [name for name in children if not (root / name).exists()]
    if not root.is_dir() or missing:
        found = f"lacks {', '.join(missing)}" if root.is_dir() else "does not exist"
        raise InputError(f"folder '{folder}' {found}; expected the layout's own folder ({', '.join(children)})")
    return root


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) + " px"
