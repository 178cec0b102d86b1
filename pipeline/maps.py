"""Embeddings of an image as a file that others open: Zarr, COG, or GeoParquet with a square for each cell.

Decides how blocks of cells become one map of each sensor. Whoever calls gives the blocks one after the other; no map is held whole.
"""

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import rasterio.shutil
import shapely
import zarr
from pyproj import CRS

from pipeline import storage
from pipeline.blend import Span
from pipeline.mosaic import Ground, Mosaic

MapFormat = Literal["zarr", "cog", "geoparquet"]
Blocks = Iterator[tuple[Span, np.ndarray, np.ndarray]]
"""Some cells, their embeddings (y, x, D) float32, and where they are known (y, x)."""
PARTS = "parts"


def write_zarr(folder: Path, name: str, ground: Ground, width: int, block: int, blocks: Blocks) -> None:
    """Write group `name`: embedding (feature, y, x) float32, NaN where unknown, with CF coordinates."""
    group = zarr.open_group(str(folder), mode="a", zarr_format=3).create_group(name)
    rows, columns = ground.shape
    size = min(block, rows), min(block, columns)
    attributes: dict[str, Any] = {"grid_mapping": "spatial_ref"}
    dimensions = ("feature", "y", "x")
    found = group.create_array(
        "embedding",
        shape=(width, rows, columns),
        chunks=(width, *size),
        dtype="float32",
        fill_value=np.nan,
        dimension_names=dimensions,
        attributes=attributes,
    )
    for axis, values in (
        ("y", ground.top - (np.arange(rows) + 0.5) * ground.cell_m),
        ("x", ground.left + (np.arange(columns) + 0.5) * ground.cell_m),
    ):
        standard: dict[str, Any] = {"standard_name": f"projection_{axis}_coordinate", "units": "m"}
        group.create_array(axis, data=values, dimension_names=(axis,), attributes=standard)
    group.create_array("spatial_ref", data=np.array(0), dimension_names=(), attributes=CRS(ground.crs).to_cf())
    for span, embeddings, is_valid in blocks:
        place = (slice(None), slice(span.start[0], span.stop[0]), slice(span.start[1], span.stop[1]))
        found[place] = _with_gaps(embeddings, is_valid)


def write_cog(path: Path, ground: Ground, width: int, blocks: Blocks) -> None:
    """Write one band for each value of the embedding, float32, nodata NaN, overviews by averaging."""
    scratch = path.with_name(f".{path.name}")
    transform = ground.geobox(ground.whole, ground.cell_m).transform
    rows, columns = ground.shape
    profile = {"driver": "GTiff", "dtype": "float32", "count": width, "height": rows, "width": columns, "nodata": np.nan}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band", "BIGTIFF": "IF_SAFER"}
    with rasterio.open(scratch, "w", crs=ground.crs, transform=transform, **profile, **layout) as target:
        for span, embeddings, is_valid in blocks:
            window = rasterio.windows.Window(span.start[1], span.start[0], span.shape[1], span.shape[0])
            target.write(_with_gaps(embeddings, is_valid), window=window)
    rasterio.shutil.copy(
        scratch, path, driver="COG", compress="zstd", predictor="yes", overview_resampling="average", bigtiff="if_safer"
    )
    scratch.unlink()


def write_cells(url: str, mosaic: Mosaic, ground: Ground, span: Span, embeddings: np.ndarray, is_valid: np.ndarray) -> int:
    """Write the known cells of one block as GeoParquet, a row each; return how many."""
    y, x = np.nonzero(is_valid)
    left, top = ground.left + (span.start[1] + x) * ground.cell_m, ground.top - (span.start[0] + y) * ground.cell_m
    squares = gpd.GeoSeries(shapely.box(left, top - ground.cell_m, left + ground.cell_m, top), crs=ground.crs)
    name = mosaic.sensor.name
    columns = {
        "id": [f"{name}/{span.start[0] + row}/{span.start[1] + column}" for row, column in zip(y.tolist(), x.tolist())],
        "sensor": [name] * len(y),
        "time": [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=mosaic.time_days)] * len(y),
    }
    write_part(url, gpd.GeoDataFrame(columns, geometry=squares.to_crs("EPSG:4326")), embeddings[is_valid])
    return len(y)


def write_part(url: str, rows: gpd.GeoDataFrame, embeddings: np.ndarray) -> None:
    """Write rows with their embeddings (N, D) as one GeoParquet file, all at once."""
    buffer = io.BytesIO()
    rows = rows.assign(embedding=list(np.asarray(embeddings, np.float32)))
    rows.to_parquet(buffer, compression="zstd")
    table = pq.read_table(io.BytesIO(buffer.getvalue()))
    # As lists of one length they are read without a copy, and by others as vectors.
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(embeddings, np.float32).ravel()), embeddings.shape[1])
    table = table.set_column(table.schema.get_field_index("embedding"), "embedding", vectors)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(url, buffer.getvalue())


def _with_gaps(embeddings: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Return (D, y, x), NaN where nothing is known."""
    return np.where(is_valid[..., None], embeddings, np.float32(np.nan)).transpose(2, 0, 1)
