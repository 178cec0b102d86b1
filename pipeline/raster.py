"""Open images wherever they lie; read them on any pixel grid with exactly one resampling."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.session import DummySession
from rasterio.vrt import WarpedVRT

from pipeline import cube
from pipeline.alignment import UNMOVED, Alignment
from pipeline.errors import InputError

CACHE_BYTES = 128 * 2**20
"""Memory for decoded blocks in each process; GDAL's own limit is a twentieth of the machine's, and as much for each worker."""
# Formats that hold their own pixels: a VRT, or a web service, could lead anywhere.
DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "JP2KAK", "HFA", "ENVI")


@contextmanager
def open_raster(href: str) -> Iterator[rasterio.DatasetReader]:
    """Open `href` (local path, `s3://` or `https://`); an unreadable file is an `InputError` with the reason."""
    options: dict[str, str | bool | int] = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": CACHE_BYTES}
    path = href
    if href.startswith("s3://"):
        path = "/vsis3/" + href.removeprefix("s3://")
        endpoint = urlparse(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        if endpoint.netloc:
            options |= {"AWS_S3_ENDPOINT": endpoint.netloc, "AWS_VIRTUAL_HOSTING": False}
            options["AWS_HTTPS"] = "YES" if endpoint.scheme == "https" else "NO"
    with rasterio.Env(session=DummySession(), **options):
        try:
            dataset = rasterio.open(path)
        except RasterioError as error:
            raise InputError(f"cannot read '{href}': {str(error).splitlines()[0]}") from None
        with dataset:
            if dataset.driver not in DRIVERS:
                raise InputError(f"'{href}' is a {dataset.driver} file; expected one of {', '.join(DRIVERS)}")
            yield dataset


def dtype_of(href: str) -> str:
    with open_raster(href) as source:
        return str(source.dtypes[0])


def read_on_grid(
    href: str,
    indexes: tuple[int, ...],
    geobox: GeoBox,
    nodata: float | None,
    alignment: Alignment = UNMOVED,
    categorical: bool = False,
    variable: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (bands, y, x) in the file's numbers and (y, x) validity of `href` on `geobox`, resampled once.

    `variable` is the one of a cube whose layers `indexes` count. What `alignment` knows of the file's displacement is
    undone inside the same resampling. Finer files are averaged down, others interpolated bilinearly (cubic overshoots at
    edges); categories take the nearest pixel. Pixels without any valid source are False in validity.
    """
    with _open(href, variable, indexes, geobox, alignment) as (source, indexes):
        if source.crs is None:
            raise InputError(f"'{href}' has no CRS; data without one goes through 'terraloom ingest'")
        resampling = Resampling.nearest if categorical else _resampling(source, geobox)
        # Without nodata, what lies outside the file is told by an added alpha band alone (masks of floats ignore it).
        warped = np.zeros((len(indexes) + (nodata is None), *geobox.shape), source.dtypes[indexes[0] - 1])
        try:
            for window, transform in alignment.pieces(geobox):
                warped[:, *window] = _warp(source, indexes, GeoBox(_shape(window), transform, geobox.crs), nodata, resampling)
        except RasterioError as error:
            raise InputError(f"cannot read '{href}': {str(error).splitlines()[0]}") from None
    pixels = warped[: len(indexes)]
    is_valid = warped[-1] > 0 if nodata is None else _has_data(pixels, nodata)
    if np.issubdtype(pixels.dtype, np.floating):
        is_valid &= np.isfinite(pixels).all(axis=0)
    return pixels, is_valid


@contextmanager
def _open(
    href: str, variable: str | None, indexes: tuple[int, ...], geobox: GeoBox, alignment: Alignment
) -> Iterator[tuple[rasterio.DatasetReader, tuple[int, ...]]]:
    """Yield the raster to read from, and which of its bands are those that `indexes` name."""
    if variable is None:
        with open_raster(href) as source:
            yield source, indexes
    else:
        places = [GeoBox(_shape(window), transform, geobox.crs) for window, transform in alignment.pieces(geobox)]
        with cube.open_window(href, variable, indexes, places) as source:
            yield source, tuple(range(1, len(indexes) + 1))


def _shape(window: tuple[slice, slice]) -> tuple[int, int]:
    return window[0].stop - window[0].start, window[1].stop - window[1].start


def _has_data(pixels: np.ndarray, nodata: float) -> np.ndarray:
    """Return (y, x) bool, True where no band says that nothing was measured."""
    stated = ~np.isnan(pixels) if np.isnan(nodata) else pixels != (np.float32(nodata) if pixels.dtype == np.float32 else nodata)
    return stated.all(axis=0)


def _warp(
    source: rasterio.DatasetReader, indexes: tuple[int, ...], geobox: GeoBox, nodata: float | None, resampling: Resampling
) -> np.ndarray:
    """Return the bands on `geobox`, and alpha after them where there is no nodata; one read, as each warps all anew."""
    with WarpedVRT(
        source,
        crs=str(geobox.crs),
        transform=geobox.transform,
        width=geobox.shape.x,
        height=geobox.shape.y,
        resampling=resampling,
        src_nodata=nodata,
        nodata=nodata,
        # GDAL interpolates positions along each line of a piece from the line's ends to this part of a source pixel, ten
        # times faster between CRSs than without. What must be the same always asks for pieces with the same columns.
        tolerance=0.005,
        add_alpha=nodata is None,
        # Otherwise GDAL widens the kernel by the size of each block's source window, which is another for each block.
        XSCALE="1",
        YSCALE="1",
    ) as warped:
        return warped.read([*indexes, warped.count] if nodata is None else indexes)


def _resampling(source: rasterio.DatasetReader, geobox: GeoBox) -> Resampling:
    metres = abs(source.transform.a) * (111_320 if source.crs.is_geographic else 1)
    return Resampling.average if abs(geobox.resolution.x) / metres >= 1.5 else Resampling.bilinear
