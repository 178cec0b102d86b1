"""terraloom embed search INDEX --like WHAT: what lies in an embedded archive or image and looks alike, with a picture."""

import io
import re
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import shapely
import torch

from cluster.raster import cell_m, encode_windows
from cluster.similarity import open_index, read_part
from jobs.distill import load_encoder
from jobs.embed import scenes_at
from jobs.figures import to_rgb
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.blend import Span
from pipeline.errors import InputError
from pipeline.maps import PARTS
from pipeline.mosaic import Ground, ground_of, mosaics

FARTHEST_DEG = 0.05
"""A place farther from all rows is outside: about 5 km."""
LONLAT = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*")


@dataclass(frozen=True)
class SearchConfig:
    """How many, and of which sensor."""

    sensor: str | None = None
    """Sensor whose embeddings are compared; default: that of the id or image, else the index's first."""
    count: int = 8
    """Neighbours to show."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"count is {self.count}, expected at least 1")


@dataclass(frozen=True)
class Query:
    """What is looked for: its embedding (D,), its pixels (band, y, x) where they can be had, the id of its row if it has one."""

    title: str
    sensor: str
    embedding: np.ndarray
    pixels: np.ndarray | None
    id: str | None = None


def search(index_url: str, like: str, out: str | None, config: SearchConfig) -> dict[str, Any]:
    """Write neighbours.json and neighbours.png to `out`; return what is in the first."""
    url = storage.absolute(index_url)
    if not storage.exists(storage.join(url, "summary.json")) or not storage.exists(storage.join(url, PARTS)):
        raise InputError(
            f"'{index_url}' holds no finished embeddings that can be searched; run 'terraloom embed ... --format geoparquet'"
        )
    about = storage.read_json(storage.join(url, "summary.json"))
    if config.sensor and config.sensor not in about["sensors"]:
        raise InputError(f"'{index_url}' has no {config.sensor} (has {', '.join(about['sensors'])}); give one of them")
    query = _query(url, about, like, config)
    index = open_index(storage.join(url, PARTS), query.sensor, storage.join(url, "index"))
    rows = [(index.row(number), cosine) for number, cosine in index.nearest(query.embedding, config.count + 1)]
    found = [(row, cosine) for row, cosine in rows if row["id"].iloc[0] != query.id][: config.count]
    neighbours = [_told(row, cosine) for row, cosine in found]
    out = storage.absolute(out) if out else storage.join(url, "search")
    summary = {"index": url, "like": like, "sensor": query.sensor, "rows": int(index.first[-1]), "neighbours": neighbours}
    storage.write_json(storage.join(out, "neighbours.json"), summary)
    picture = storage.join(out, "neighbours.png")
    storage.write_bytes(picture, _picture(query, [(row, cosine, _pixels(about, row)) for row, cosine in found], about))
    return {**summary, "picture": picture}


def _query(url: str, about: dict[str, Any], like: str, config: SearchConfig) -> Query:
    if storage.exists(like):
        return _image(about, like, config.sensor)
    place = LONLAT.fullmatch(like)
    row = (
        _row_at(url, float(place[1]), float(place[2]), config.sensor or about["sensors"][0])
        if place
        else _row(url, like, config.sensor)
    )
    name = str(row["id"].iloc[0])
    return Query(name, str(row["sensor"].iloc[0]), np.asarray(row["embedding"].iloc[0], np.float32), _pixels(about, row), name)


def _parts(url: str) -> list[str]:
    return [storage.join(url, PARTS, name) for name in storage.names(storage.join(url, PARTS))]


def _row(url: str, name: str, sensor: str | None) -> gpd.GeoDataFrame:
    """Return the row with id `name`, or the first of site `name`."""
    for part in _parts(url):
        rows = read_part(part)
        rows = rows[rows["sensor"] == sensor] if sensor else rows
        is_found = rows["id"] == name
        if "site" in rows and not is_found.any():
            is_found = rows["site"] == name
        if is_found.any():
            return rows[is_found].iloc[:1]
    raise InputError(f"'{name}' is no id or site of '{url}', no LON,LAT and no file; ids look like those in {_parts(url)[0]}")


def _row_at(url: str, lon_deg: float, lat_deg: float, sensor: str) -> gpd.GeoDataFrame:
    """Return the row of `sensor` whose ground is nearest to a place."""
    here, best, least = shapely.Point(lon_deg, lat_deg), None, np.inf
    for part in _parts(url):
        rows = read_part(part)
        rows = rows[(rows["sensor"] == sensor) & rows.geometry.notna()]
        distance = shapely.distance(rows.geometry.to_numpy(), here) if len(rows) else np.array([np.inf])
        if distance.min() < least:
            least, best = float(distance.min()), rows.iloc[[int(distance.argmin())]]
    if best is None or least > FARTHEST_DEG:
        where = f"; the nearest is {least:.2g} degrees away" if best is not None else ""
        raise InputError(f"'{url}' has no {sensor} at {lon_deg:g},{lat_deg:g}{where}; give a place inside, or an id")
    return best


def _image(about: dict[str, Any], path: str, sensor: str | None) -> Query:
    """Embed the middle of an image as the index was embedded."""
    encoder = load_encoder(about["model"])
    known = [spec.name for spec in encoder.config.sensors if spec.name in about["sensors"]]
    scenes, _ = scenes_at(storage.absolute(path), sensor, None)
    name, mosaic = next(iter(mosaics(scenes, [sensor] if sensor else known).items()))
    side = max(1, round(about.get("window_m", _site_m(about)) / cell_m(encoder)))
    ground = ground_of({name: mosaic}, cell_m(encoder), side)
    (y, x) = ((size - side) // 2 for size in ground.shape)
    window = Span((y, x), (y + side, x + side))
    pixels, is_valid = mosaic.read(ground.geobox(window, mosaic.sensor.gsd_m))
    inputs = torch.from_numpy(pixels)[None], torch.from_numpy(is_valid)[None]
    found = encode_windows(encoder, mosaic.sensor, *inputs, mosaic.time_days, ground.lonlat_deg([window]))
    middle = found.grid[0, 0, side // 2, side // 2] if about["kind"] == "raster" else found.pooled[0, 0]
    return Query(path, name, middle.numpy(), pixels)


def _site_m(about: dict[str, Any]) -> float:
    return open_archive(about["source"]).grid.site_size_m if about["kind"] == "archive" else 0.0


def _pixels(about: dict[str, Any], row: gpd.GeoDataFrame) -> np.ndarray | None:
    """Return the pixels (band, y, x) behind a row: its tile, or the window around its cell."""
    first = row.iloc[0]
    if about["kind"] == "archive":
        archive = open_archive(about["source"])
        stored, _ = archive.read(first["shard"], first["sensor"], np.array([first["row"]]))
        return archive.sensors[first["sensor"]].to_physical(stored)[0]
    scenes, _ = scenes_at(about["source"], about["sensor_given"], about["datetime_given"])
    mosaic = mosaics(scenes, [first["sensor"]])[first["sensor"]]
    ground = Ground(about["crs"], about["left"], about["top"], about["cell_m"], tuple(about["shape"]))
    cell_y, cell_x = map(int, first["id"].split("/")[1:])
    side = max(1, round(about["window_m"] / about["cell_m"]))
    y, x = cell_y - side // 2, cell_x - side // 2
    pixels, is_valid = mosaic.read(ground.geobox(Span((y, x), (y + side, x + side)), mosaic.sensor.gsd_m))
    return np.where(is_valid, pixels, np.float32(np.nan)) if is_valid.any() else None


def _told(row: gpd.GeoDataFrame, cosine: float) -> dict[str, Any]:
    first = row.iloc[0]
    facts: dict[str, Any] = {"id": first["id"], "cosine": round(cosine, 4), "time": str(first["time"])}
    if first.geometry is not None:
        facts |= {"lon_deg": round(first.geometry.centroid.x, 6), "lat_deg": round(first.geometry.centroid.y, 6)}
    return facts


def _picture(query: Query, found: list[tuple[gpd.GeoDataFrame, float, np.ndarray | None]], about: dict[str, Any]) -> bytes:
    """Return a PNG: what was asked for, then its neighbours, each with its cosine."""
    bands = load_encoder(about["model"]).spec(query.sensor).bands
    shown = [(query.title, query.pixels), *((f"{row['id'].iloc[0]}\n{cosine:.3f}", pixels) for row, cosine, pixels in found)]
    figure, axes = plt.subplots(1, len(shown), figsize=(2.2 * len(shown), 2.6), squeeze=False)
    for axis, (title, pixels) in zip(axes[0], shown):
        if pixels is not None:
            axis.imshow(np.nan_to_num(to_rgb(pixels, bands, pixels)))
        axis.set_title(title if len(title) < 40 else f"…{title[-36:]}", fontsize=6)
        axis.set_xticks([])
        axis.set_yticks([])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return buffer.getvalue()
