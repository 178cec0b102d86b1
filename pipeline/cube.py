"""Cubes: NetCDF files and Zarr stores with axes of time or band, opened through xarray wherever they lie.

A layer of a variable is one image; its number, counted from 1, runs over the axes before (y, x). A window of it becomes a
small raster in memory, so that cubes and plain files are warped by the same code.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

import fsspec
import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import CRS as ProjCRS
from pyproj.exceptions import CRSError as ProjError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.transform import Affine

from pipeline import storage
from pipeline.errors import InputError

SUFFIXES = (".nc", ".zarr")
KERNEL_MARGIN_PX = 4


@dataclass(frozen=True)
class Layer:
    """One image of a variable: its number in it, the name of its band, its time if it has one."""

    index: int
    band: str
    time: datetime | None


@dataclass(frozen=True)
class Variable:
    """One variable over (..., y, x), with what it says of its numbers; None where it says nothing."""

    name: str
    dtype: str
    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    layers: tuple[Layer, ...]
    scale: float | None
    offset: float | None
    nodata: float | None
    unit: str | None


def is_cube(href: str) -> bool:
    return href.rstrip("/").lower().endswith(SUFFIXES)


@contextmanager
def open_cube(href: str) -> Iterator[xr.Dataset]:
    """Open a cube with its stored numbers; what cannot be read, now or later, is an InputError."""
    try:
        with ExitStack() as stack:
            yield stack.enter_context(_open(href, stack))
    except (OSError, RuntimeError) as error:
        raise _unreadable(href, error) from None


def _open(href: str, stack: ExitStack) -> xr.Dataset:
    try:
        if href.rstrip("/").lower().endswith(".zarr"):
            options = storage.s3_options() if href.startswith("s3://") else None
            return xr.open_zarr(href, mask_and_scale=False, chunks=None, storage_options=options)
        file = stack.enter_context(fsspec.core.OpenFile(*storage.filesystem(href)))
        return xr.open_dataset(file, mask_and_scale=False)
    except (ValueError, KeyError) as error:  # not the format that its name says, or an axis of time that is none
        raise _unreadable(href, error) from None


def _unreadable(href: str, error: Exception) -> InputError:
    return InputError(f"cannot read '{href}': {(str(error).splitlines() or [repr(error)])[0]}")


def describe_cube(href: str, is_band: Callable[[str], bool]) -> list[Variable]:
    """Return the variables that are images with a CRS and whose own name, or whose layers' names, `is_band` knows."""
    with open_cube(href) as dataset:
        names = [str(name) for name, array in dataset.data_vars.items() if _is_image(dataset, array)]
        found = [_variable(dataset, name, is_band) for name in names]
    named = [variable for variable in found if variable is not None]
    if not named:
        raise InputError(f"no variable of it is a band of the sensor (has {', '.join(names) or 'no image'}); name another --sensor")
    return named


def _is_image(dataset: xr.Dataset, array: xr.DataArray) -> bool:
    return array.ndim >= 2 and set(array.dims[-2:]) <= set(dataset.coords)


def _variable(dataset: xr.Dataset, name: str, is_band: Callable[[str], bool]) -> Variable | None:
    array = dataset[name]
    axes = [_labels(array, str(axis)) for axis in array.dims[:-2]]
    own_time = _datetimes(np.atleast_1d(dataset["time"].values), "time")[0] if _has_one_time(dataset) else None
    layers = []
    for index, labels in enumerate(product(*axes), start=1):
        time = next((label for label in labels if isinstance(label, datetime)), own_time)
        band = next((label for label in labels if isinstance(label, str)), name)
        if is_band(band):
            layers.append(Layer(index, band, time))
    if not layers:
        return None
    attributes = {**dataset.attrs, **array.encoding, **array.attrs}
    dtype, fill = _dtype(array), attributes.get("_FillValue", attributes.get("missing_value"))
    return Variable(
        name=name,
        dtype=str(dtype),
        crs=_crs(dataset, array),
        transform=_transform(array),
        shape=(array.shape[-2], array.shape[-1]),
        layers=tuple(layers),
        scale=_number(attributes.get("scale_factor")),
        offset=_number(attributes.get("add_offset")),
        nodata=_number(fill if fill is None or dtype == array.dtype else np.asarray(fill).astype(dtype)),
        unit=array.attrs.get("units") or None,
    )


def _dtype(array: xr.DataArray) -> np.dtype:
    """Return the dtype that the numbers stand for: NetCDF keeps unsigned ones as signed, and says so."""
    is_unsigned = array.dtype.kind == "i" and str(array.attrs.get("_Unsigned", "")).lower() == "true"
    return np.dtype(f"u{array.dtype}") if is_unsigned else array.dtype


def _has_one_time(dataset: xr.Dataset) -> bool:
    return "time" in dataset.coords and dataset["time"].size == 1


def _labels(array: xr.DataArray, axis: str) -> Sequence[datetime | str]:
    values = array[axis].values
    return _datetimes(values, axis) if np.issubdtype(values.dtype, np.datetime64) else [str(value) for value in values]


def _datetimes(values: np.ndarray, axis: str) -> list[datetime]:
    if not np.issubdtype(values.dtype, np.datetime64):
        raise InputError(f"its axis '{axis}' is no time of the common calendar (holds {values.dtype})")
    return [datetime.fromtimestamp(float(v), UTC) for v in values.astype("datetime64[us]").astype(np.int64) / 1e6]


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return None


def _crs(dataset: xr.Dataset, array: xr.DataArray) -> CRS:
    """Return the CRS by CF (the variable that grid_mapping names, or spatial_ref) or by an attribute."""
    mapping = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping") or "spatial_ref"
    conventions = dataset[mapping].attrs if mapping in dataset.variables else {}
    for attributes in (conventions, array.attrs, dataset.attrs):
        for key in ("crs_wkt", "spatial_ref", "proj:code", "crs"):
            if attributes.get(key):
                try:
                    return CRS.from_user_input(attributes[key])
                except CRSError:
                    raise InputError(f"its CRS '{attributes[key]}' is not known to PROJ") from None
    try:
        return CRS.from_wkt(ProjCRS.from_cf(conventions).to_wkt())
    except (ProjError, KeyError):
        raise InputError(f"variable '{array.name}' has no CRS; expected a grid mapping (CF) or a crs attribute") from None


def _transform(array: xr.DataArray) -> Affine:
    steps = []
    for axis in array.dims[:-3:-1]:
        values = array[axis].values.astype(float)
        step = (values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else math.nan
        if not np.allclose(np.diff(values), step, rtol=0, atol=abs(step) * 1e-3):
            raise InputError(f"axis '{axis}' of variable '{array.name}' is not evenly spaced; resample it to a grid")
        steps.append((values[0] - step / 2, step))
    (left, width), (top, height) = steps
    return Affine(width, 0, left, 0, height, top)


def sample(href: str, variable: str, index: int, size_px: int) -> np.ndarray:
    """Return the stored numbers (y, x) in the middle of one layer."""
    with open_cube(href) as dataset:
        array = dataset[variable]
        rows, columns = (slice(max(0, (n - size_px) // 2), (n + size_px) // 2 + 1) for n in array.shape[-2:])
        return _layer(array, index, rows, columns)


def _layer(array: xr.DataArray, index: int, rows: slice, columns: slice) -> np.ndarray:
    axes = array.shape[:-2]
    before = np.unravel_index(index - 1, axes) if axes else ()
    return array[(*before, rows, columns)].values.astype(_dtype(array), copy=False)


@contextmanager
def open_window(href: str, variable: str, indexes: Sequence[int], places: Sequence[GeoBox]) -> Iterator[DatasetReader]:
    """Yield a raster of the layers `indexes` of a variable, no larger than what `places` need."""
    with open_cube(href) as dataset:
        array = dataset[variable]
        crs, transform = _crs(dataset, array), _transform(array)
        rows, columns = _window(places, crs, transform, (array.shape[-2], array.shape[-1]))
        pixels = np.stack([_layer(array, index, rows, columns) for index in indexes])
    profile = {"count": len(indexes), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype, "crs": crs}
    place = transform @ Affine.translation(columns.start, rows.start)
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", transform=place, **profile) as file:
            file.write(pixels)
        with memory.open() as source:
            yield source


def _window(places: Sequence[GeoBox], crs: CRS, transform: Affine, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns under `places`; one pixel at the border where they lie outside."""
    rows, columns = [], []
    for place in places:
        outline = place.extent.to_crs(crs.to_wkt(), resolution=max(place.extent.boundingbox.span_x, 1e-9) / 16)
        box = outline.boundingbox
        corners = [~transform @ (x, y) for x in (box.left, box.right) for y in (box.bottom, box.top)]
        columns += [x for x, _ in corners]
        rows += [y for _, y in corners]
    return _span(rows, shape[0]), _span(columns, shape[1])


def _span(positions: Sequence[float], size: int) -> slice:
    first = min(max(0, math.floor(min(positions)) - KERNEL_MARGIN_PX), size - 1)
    return slice(first, min(max(first + 1, math.ceil(max(positions)) + KERNEL_MARGIN_PX), size))
