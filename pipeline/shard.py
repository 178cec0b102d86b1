"""Shards: the tiles of one block of ground as one Zarr v3 group, an array a sensor, a tile a chunk.

Decides how pixels, validity and maps of labels lie in a shard. When a shard counts is decided by `archive`.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from shapely.geometry.base import BaseGeometry
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.errors import UnstableSpecificationWarning

from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap
from pipeline.registration import REFERENCE, Registration
from pipeline.sensors import Sensor
from pipeline.statistics import statistics_of, write_table

STATISTICS = "statistics.parquet"
MAPS = "labels"


@dataclass(frozen=True)
class Tile:
    """One sensor's pixels over one site at one time, with what the catalog says of it.

    `pixels` (band, y, x) in the sensor's stored dtype; `is_valid` (y, x) bool. Without a CRS, `geometry` and
    `transform` are None and `site` only says which chips belong together. `order` ranks the dates of a site. `maps` are
    the labels of kind 'map', on the tile's own pixels; the catalog says how many pixels of each class they have.
    """

    sensor: str
    site: str
    pixels: np.ndarray
    is_valid: np.ndarray
    time: datetime | None
    order: int
    scene: str
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    geometry: BaseGeometry | None = None
    registration: Registration = REFERENCE
    cloud_fraction: float = 0.0
    labels: Mapping[str, float | list[int]] = field(default_factory=dict)
    maps: Mapping[str, LabelMap] = field(default_factory=dict)


def write_shard(
    folder: Path, tiles: list[Tile], sensors: dict[str, Sensor], labels: dict[str, Label], grid: Grid
) -> list[dict[str, Any]]:
    """Write `tiles` and their statistics into `folder` as one Zarr group; return a catalog row for each tile."""
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    rows, statistics = [], {}
    for name in sorted({tile.sensor for tile in tiles}):
        chosen, sensor = [tile for tile in tiles if tile.sensor == name], sensors[name]
        part = group.create_group(name)
        _write_sensor(part, chosen, sensor, grid)
        for label in sorted({label for tile in chosen for label in tile.maps}):
            _write_map(part.create_group(f"{MAPS}/{label}"), label, chosen, labels[label])
        rows += [_row(tile, index, labels) for index, tile in enumerate(chosen)]
        statistics[name] = statistics_of(sensor, ((tile.pixels, tile.is_valid) for tile in chosen))
    (folder / STATISTICS).write_bytes(write_table(statistics))
    return rows


def _write_sensor(group: zarr.Group, tiles: list[Tile], sensor: Sensor, grid: Grid) -> None:
    shape = (len(sensor.bands), *sensor.tile_shape(grid.site_size_m))
    for tile in tiles:
        if tile.pixels.shape != shape or tile.pixels.dtype != sensor.dtype or tile.is_valid.shape != shape[1:]:
            raise ValueError(f"tile of {sensor.name} is {tile.pixels.shape} {tile.pixels.dtype}, expected {shape} {sensor.dtype}")
    attributes: dict[str, Any] = {"units": sensor.unit, "long_name": sensor.quantity}
    if (sensor.scale, sensor.offset) != (1.0, 0.0):
        attributes |= {"scale_factor": sensor.scale, "add_offset": sensor.offset}
    write_array(group, "pixels", np.stack([t.pixels for t in tiles]), ("tile", "band", "y", "x"), attributes)
    write_array(group, "valid", np.stack([t.is_valid for t in tiles]), ("tile", "y", "x"), {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)  # fixed-width strings, readable by xarray
        group.create_array("band", data=np.array(sensor.band_names), dimension_names=("band",))
        group.create_array("site", data=np.array([t.site for t in tiles]), dimension_names=("tile",))
    seconds = np.array([np.iinfo("int64").min if t.time is None else int(t.time.timestamp()) for t in tiles])
    time: dict[str, Any] = {
        "units": "seconds since 1970-01-01",
        "calendar": "proleptic_gregorian",
        "_FillValue": int(np.iinfo("int64").min),
    }
    group.create_array("time", data=seconds, dimension_names=("tile",), attributes=time)


def _write_map(group: zarr.Group, name: str, tiles: list[Tile], label: Label) -> None:
    """Write label `name` of the tiles as CF tells categories; a tile without it is labelled nowhere."""
    shape = tiles[0].is_valid.shape
    nowhere = LabelMap(np.zeros(shape, np.uint8), np.zeros(shape, bool))
    maps = [tile.maps.get(name, nowhere) for tile in tiles]
    for found in maps:
        if {found.classes.shape, found.is_labelled.shape} != {shape} or found.classes.dtype != np.uint8:
            raise ValueError(f"map '{name}' is {found.classes.shape} {found.classes.dtype}, expected {shape} uint8")
    classes = np.stack([np.where(found.is_labelled, found.classes, 0) for found in maps])
    attributes = {**label.flags(), "ancillary_variables": "labelled"}
    write_array(group, "classes", classes.astype(np.uint8), ("tile", "y", "x"), attributes)
    write_array(group, "labelled", np.stack([found.is_labelled for found in maps]), ("tile", "y", "x"), {})


def write_array(group: zarr.Group, name: str, data: np.ndarray, dimensions: tuple[str, ...], attributes: dict) -> None:
    """Write an array with one tile a chunk and a checksum after each, all in one shard."""
    array = group.create_array(
        name,
        shape=data.shape,
        chunks=(1, *data.shape[1:]),
        shards=data.shape,
        dtype=data.dtype,
        compressors=[BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=data.dtype.itemsize), Crc32cCodec()],
        dimension_names=dimensions,
        attributes=attributes,
        config={"write_empty_chunks": True},  # every tile has its checksum, also one of zeros
    )
    array[:] = data


def _row(tile: Tile, index: int, labels: dict[str, Label]) -> dict[str, Any]:
    counts = {name: found.counts(len(labels[name].classes)) for name, found in tile.maps.items()}
    centre = tile.geometry.centroid if tile.geometry is not None else None
    return {
        "site": tile.site,
        "sensor": tile.sensor,
        "time": tile.time,
        "order": tile.order,
        "row": index,
        "scene": tile.scene,
        "crs": tile.crs,
        "transform": list(tile.transform) if tile.transform else None,
        "geometry": tile.geometry,
        "lon_deg": centre.x if centre else np.nan,
        "lat_deg": centre.y if centre else np.nan,
        **asdict(tile.registration),
        "valid_fraction": float(tile.is_valid.mean()),
        "cloud_fraction": tile.cloud_fraction,
        "labels": json.dumps({**tile.labels, **counts}),
    }
