"""terraloom inspect ARCHIVE: what is in it, how large, how well registered, how the splits lie, what is missing."""

import json
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from pipeline import storage
from pipeline.archive import Archive, open_archive
from pipeline.shard import MAPS

EARTH_RADIUS_M = 6_371_000.0


def inspect(url: str) -> dict[str, Any]:
    """Describe an archive from its catalog and its files' sizes; no pixel is read."""
    archive = open_archive(url)
    catalog = archive.catalog()
    sizes = _stored_bytes(archive, set(catalog["shard"]))
    raw = {name: _raw_bytes(archive, name) * len(rows) for name, rows in catalog.groupby("sensor")}
    return {
        "archive": archive.url,
        "digest": archive.digest(),
        "shards": int(catalog["shard"].nunique()),
        "sites": int(catalog["site"].nunique()),
        "stored_mb": round(sum(sizes.values()) / 1e6, 3),
        "raw_mb": round(sum(raw.values()) / 1e6, 3),
        "sensors": {str(n): _sensor(rows, sizes[str(n)], raw[n]) for n, rows in catalog.groupby("sensor")},
        "splits": _splits(archive, catalog),
        "labels": {name: _label(archive, catalog, name) for name in archive.labels},
        "missing_pairs": _missing_pairs(catalog),
    }


def _sensor(rows: pd.DataFrame, stored_bytes: int, raw_bytes: int) -> dict[str, Any]:
    times = rows["time"].dropna()
    shift_m = np.hypot(rows["shift_x_m"], rows["shift_y_m"])
    return {
        "tiles": len(rows),
        "sites": int(rows["site"].nunique()),
        "scenes": int(rows["scene"].nunique()),
        "dates": int(times.dt.date.nunique()),
        "first": times.min().isoformat() if len(times) else None,
        "last": times.max().isoformat() if len(times) else None,
        "stored_mb": round(stored_bytes / 1e6, 3),
        "compression": round(raw_bytes / max(stored_bytes, 1), 2),
        "valid_fraction": round(float(rows["valid_fraction"].mean()), 4),
        "cloud_fraction": round(float(rows["cloud_fraction"].mean()), 4),
        "moved_tiles": int((shift_m > 0).sum()),
        "median_shift_m": round(float(np.median(shift_m[shift_m > 0])), 3) if (shift_m > 0).any() else 0.0,
        "median_confidence": round(float(rows["confidence"].median()), 3),
    }


def _raw_bytes(archive: Archive, name: str) -> int:
    """Return the size of one tile's pixels and validity, not compressed."""
    sensor = archive.sensors[name]
    return int(np.prod(sensor.tile_shape(archive.grid.site_size_m))) * (len(sensor.bands) * np.dtype(sensor.dtype).itemsize + 1)


def _stored_bytes(archive: Archive, shards: set[str]) -> dict[str, int]:
    """Return {sensor: bytes of its arrays in published shards}; labels and what belongs to no sensor are under ''."""
    total = dict.fromkeys(["", *archive.sensors], 0)
    for name, size in storage.files(storage.join(archive.url, "shards")).items():
        shard, _, rest = name.partition("/")
        if shard.removesuffix(".zarr") in shards:
            sensor, _, rest = rest.partition("/")
            total[sensor if sensor in archive.sensors and not rest.startswith(f"{MAPS}/") else ""] += size
    return total


def _splits(archive: Archive, catalog: pd.DataFrame) -> dict[str, Any]:
    sites = catalog.drop_duplicates("site")
    return {
        "sites": {str(k): int(v) for k, v in sites["split"].value_counts().sort_index().items()},
        "promised_distance_m": archive.grid.split_distance_m,
        "nearest_train_test_centres_m": nearest_m(sites[sites["split"] == "train"], sites[sites["split"] == "test"]),
    }


def nearest_m(first: pd.DataFrame, second: pd.DataFrame) -> float | None:
    """Return the least distance on the sphere between site centres of the two; None where one has no place on Earth."""
    points = [_on_sphere(part.dropna(subset=["lon_deg", "lat_deg"])) for part in (first, second)]
    if not all(map(len, points)):
        return None
    chord = cKDTree(points[0]).query(points[1])[0].min()
    return round(float(2 * EARTH_RADIUS_M * np.arcsin(chord / 2)), 1)


def _on_sphere(sites: pd.DataFrame) -> np.ndarray:
    lon, lat = np.radians(sites["lon_deg"].to_numpy()), np.radians(sites["lat_deg"].to_numpy())
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _label(archive: Archive, catalog: pd.DataFrame, name: str) -> dict[str, Any]:
    label = archive.labels[name]
    values = catalog["labels"].map(lambda text: json.loads(text).get(name)).dropna()
    described: dict[str, Any] = {"kind": label.kind, "scope": label.scope, "labelled_tiles": len(values)}
    if label.kind in ("class", "multilabel"):
        counts = values.explode().dropna().astype(int).value_counts()
        described["tiles_by_class"] = {text: int(counts.get(index, 0)) for index, text in enumerate(label.classes)}
    elif label.kind == "map":
        pixels = np.sum(values.tolist() or [[0] * len(label.classes)], axis=0)
        described["pixels_by_class"] = dict(zip(label.classes, pixels.tolist()))
    elif label.kind in ("binary", "fraction") and len(values):
        described["mean"] = round(float(values.astype(float).mean()), 4)
    return described


def _missing_pairs(catalog: pd.DataFrame) -> dict[str, int]:
    """Return {'a+b': sites that have a tile of one of the two sensors but not of the other}."""
    sites = {str(name): set(rows["site"]) for name, rows in catalog.groupby("sensor")}
    return {f"{a}+{b}": len(sites[a] ^ sites[b]) for a, b in combinations(sorted(sites), 2)}
