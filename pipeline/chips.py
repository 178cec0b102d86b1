"""What layouts of ready-made chips share: cutting an image into sites, and which place goes to which split."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from PIL import Image, UnidentifiedImageError
from rasterio.errors import RasterioError
from rasterio.transform import Affine

from pipeline.errors import InputError
from pipeline.raster import open_raster

SPLIT_SHARES = (("train", 0.6), ("val", 0.15), ("test", 0.25))


def cut(shape_px: tuple[int, ...], size_px: int) -> Iterator[tuple[str, tuple[slice, slice]]]:
    """Yield ('r<row>c<column>', window) for each whole `size_px` square; a narrower rest is left out."""
    for i in range(shape_px[0] // size_px):
        for j in range(shape_px[1] // size_px):
            yield f"r{i}c{j}", (slice(i * size_px, (i + 1) * size_px), slice(j * size_px, (j + 1) * size_px))


def split_places(places: Sequence[str]) -> dict[str, str]:
    """Return place -> split: 60 / 15 / 25 % of the places in an order fixed by their names' hashes."""
    ordered = sorted(places, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    limits = np.cumsum([share for _, share in SPLIT_SHARES]) * len(ordered)
    return {name: SPLIT_SHARES[int(np.searchsorted(limits, index + 0.5))][0] for index, name in enumerate(ordered)}


def read_image(path: Path) -> np.ndarray:
    """Return a PNG or JPEG as (band, y, x) in its own dtype."""
    try:
        pixels = np.asarray(Image.open(path))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"cannot read '{path}': {error}") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@dataclass(frozen=True)
class Chip:
    """One georeferenced chip: pixels (band, y, x) in the file's numbers, where none of them is no data (y, x), its place."""

    pixels: np.ndarray
    is_valid: np.ndarray
    crs: str
    transform: Affine

    def place(self, window: tuple[slice, slice]) -> dict[str, Any]:
        """Return what a `Tile` says of where a window of the chip lies."""
        part = self.transform @ Affine.translation(window[1].start, window[0].start)
        grid = GeoBox((window[0].stop - window[0].start, window[1].stop - window[1].start), part, self.crs)
        return {"crs": self.crs, "transform": tuple(part)[:6], "geometry": grid.extent.to_crs("EPSG:4326").geom}


def read_chip(path: Path, num_bands: int) -> Chip:
    """Return a GeoTIFF chip; pixels that are nodata or not finite in any band, or zero in all of several, are not valid."""
    with open_raster(str(path)) as source:
        if source.count != num_bands:
            raise InputError(f"'{path}' has {source.count} bands, expected {num_bands}")
        if source.crs is None:
            raise InputError(f"'{path}' has no CRS; expected a georeferenced chip")
        try:
            pixels, nodata = source.read(), source.nodata
        except RasterioError as error:
            raise InputError(f"cannot read '{path}': {str(error).splitlines()[0]}") from None
        crs, transform = str(source.crs), source.transform
    is_valid = np.isfinite(pixels).all(axis=0)
    if nodata is not None and np.isfinite(nodata):
        is_valid &= (pixels != nodata).all(axis=0)
    if num_bands > 1:
        is_valid &= (pixels != 0).any(axis=0)
    return Chip(pixels, is_valid, crs, transform)


def require_folder(folder: str, *children: str) -> Path:
    """Return `folder` as a path, or say which of its expected children is missing."""
    root = Path(folder)
    missing = [name for name in children if not (root / name).exists()]
    if not root.is_dir() or missing:
        found = f"lacks {', '.join(missing)}" if root.is_dir() else "does not exist"
        raise InputError(f"folder '{folder}' {found}; expected the layout's own folder ({', '.join(children)})")
    return root
