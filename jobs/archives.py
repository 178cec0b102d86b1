"""What every job that fills an archive does at its end: statistics of the train split, and proof by `verify`."""

import io
from collections import defaultdict
from dataclasses import asdict
from typing import Any

import geopandas as gpd
import numpy as np
import ray

from jobs.progress import gather
from pipeline import storage
from pipeline.archive import Archive, open_archive
from pipeline.errors import InputError
from pipeline.statistics import Moments, shard_moments, summarise

TASK_CPUS = 1


@ray.remote(num_cpus=TASK_CPUS)
def _moments(archive: Archive, shard: str, sensor: str, num_tiles: int) -> Moments | None:
    return shard_moments(archive, shard, sensor, num_tiles)


def write_statistics(archive: Archive) -> None:
    """Compute statistics.json over the train split, one task per shard and sensor."""
    catalog = archive.catalog()
    counts = catalog[catalog["split"] == "train"].groupby(["shard", "sensor"]).size()
    tasks = {_moments.remote(archive, shard, sensor, int(n)): (shard, sensor) for (shard, sensor), n in counts.items()}
    found = {key: moments for key, moments in gather(tasks, "statistics") if moments is not None}
    totals: dict[str, Moments] = {}
    for (_, sensor), moments in sorted(found.items()):  # in one order, so that sums are the same every time
        totals[sensor] = totals[sensor].merge(moments) if sensor in totals else moments
    content = {name: summarise(moments, archive.sensors[name].band_names) for name, moments in totals.items()}
    storage.write_json(storage.join(archive.url, "statistics.json"), {"split": "train", "sensors": content})


@ray.remote(num_cpus=TASK_CPUS)
def _check(archive: Archive, shard: str, rows: Any) -> list[str]:
    return _faults(archive, shard, rows)


def _faults(archive: Archive, shard: str, rows: Any) -> list[str]:
    faults = []
    url = archive.shard_url(shard)
    if not storage.exists(url):
        return [f"{shard}: the catalog names it, it is not there"]
    if storage.folder_digest(url) != rows["shard_digest"].iloc[0]:
        faults.append(f"{shard}: checksum differs from the catalog's")
    for name, group in rows.groupby("sensor"):
        sensor = archive.sensors.get(name)
        if sensor is None:
            faults.append(f"{shard}: sensor '{name}' is not in archive.json")
            continue
        if sorted(group["row"]) != list(range(len(group))):
            faults.append(f"{shard}: rows of {name} in the catalog are not 0 … {len(group) - 1}")
        try:
            stored, is_valid = archive.read(shard, name, np.arange(len(group)))
        except Exception as error:  # whatever a damaged file makes the decoder say is the finding
            faults.append(f"{shard}: {name} cannot be read ({type(error).__name__}: {error})")
            continue
        faults += [f"{shard}: {name} {fault}" for fault in _range_faults(sensor, stored, is_valid)]
        if not np.allclose(is_valid.mean(axis=(1, 2)), group.sort_values("row")["valid_fraction"], atol=1e-6):
            faults.append(f"{shard}: {name} valid fractions differ from the catalog's")
    return faults


def _range_faults(sensor: Any, stored: np.ndarray, is_valid: np.ndarray) -> list[str]:
    physical = sensor.to_physical(stored).transpose(1, 0, 2, 3)
    low, high = sensor.valid_range
    faults = []
    for band, values in zip(sensor.band_names, physical):
        outside = (values[is_valid] < low) | (values[is_valid] > high)
        if outside.mean() > 0.01:
            faults.append(f"{band}: {outside.mean():.1%} of valid pixels outside {low:g} … {high:g} {sensor.unit}")
    return faults


def verify(url: str) -> dict[str, Any]:
    """Check every shard's checksum, counts and value ranges; raise an InputError that lists what is wrong."""
    archive = open_archive(url)
    catalog = archive.catalog()
    shared = ray.put(archive)
    tasks = {_check.remote(shared, str(shard), rows): shard for shard, rows in catalog.groupby("shard")}
    faults = [fault for _, found in gather(tasks, "verify") for fault in found]
    archive.read_statistics()
    orphans = _unpublished(archive)
    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise InputError(f"archive '{url}' has {len(faults)} faults: {shown}; run 'terraloom repair {url}', then the job again")
    return {"archive": archive.url, "faults": 0, "unpublished_shards": len(orphans), **inventory(archive)}


def _unpublished(archive: Archive) -> list[str]:
    """Return the shards on storage that no catalog part names."""
    present = [n.removesuffix(".zarr") for n in storage.names(storage.join(archive.url, "shards")) if n.endswith(".zarr")]
    return sorted({n for n in present if not n.startswith(".")} - set(archive.published()))


def repair(url: str) -> dict[str, Any]:
    """Publish whole shards whose catalog part is lost, withdraw damaged ones, and say which; run while no job writes."""
    archive = open_archive(url)
    republished, lost = [], []
    for shard in _unpublished(archive):
        copy = archive.copy_of_part(shard)
        rows = gpd.read_parquet(io.BytesIO(storage.read_bytes(copy))) if storage.exists(copy) else None
        if rows is None or _faults(archive, shard, rows):
            lost.append(shard)
        else:
            storage.write_bytes(storage.join(archive.url, "catalog", f"{shard}.parquet"), storage.read_bytes(copy))
            republished.append(shard)
    shared = ray.put(archive)
    parts = archive.catalog().groupby("shard") if archive.published() else []
    tasks = {_check.remote(shared, str(shard), rows): str(shard) for shard, rows in parts}
    lost += [shard for shard, faults in gather(tasks, "repair") if faults]
    for shard in lost:
        archive.withdraw(shard)
    leftovers = [n for n in storage.names(storage.join(url, "shards")) if n.startswith(".")]
    for name in leftovers:
        storage.remove(storage.join(url, "shards", name))
    if archive.published():
        write_statistics(archive)
    return {"archive": archive.url, "republished": republished, "lost": sorted(lost), "leftovers_removed": len(leftovers)}


def inspect(url: str) -> dict[str, Any]:
    """Return what is in an archive: tiles, dates, splits, labels, registration and size of each sensor."""
    archive = open_archive(url)
    catalog = archive.catalog()
    sensors: dict[str, dict[str, Any]] = {}
    for name, rows in catalog.groupby("sensor"):
        sensor = archive.sensors[str(name)]
        height, width = sensor.tile_shape(archive.grid.site_size_m)
        dates = rows["time"].dropna()
        sensors[str(name)] = {
            "tiles": len(rows),
            "sites": int(rows["site"].nunique()),
            "bands": list(sensor.band_names),
            "tile_px": [height, width],
            "dates": [str(dates.min()), str(dates.max())] if len(dates) else [],
            "valid_fraction": round(float(rows["valid_fraction"].mean()), 4),
            "registered": round(float((rows["confidence"] > 0).mean()), 4),
            "median_shift_m": round(float(np.hypot(rows["shift_x_m"], rows["shift_y_m"]).median()), 2),
            "bytes_uncompressed": len(rows) * height * width * (len(sensor.bands) * np.dtype(sensor.dtype).itemsize + 1),
        }
    stored = sum(storage.size(archive.shard_url(shard)) for shard in archive.published())
    raw = sum(s["bytes_uncompressed"] for s in sensors.values())
    labels = {n: int(catalog["labels"].str.contains(f'"{n}"', regex=False).sum()) for n in archive.labels}
    together = catalog.groupby("site")["sensor"].agg(lambda s: "+".join(sorted(set(s)))).value_counts()
    return {
        "archive": archive.url,
        "digest": archive.digest(),
        "grid": asdict(archive.grid),
        **inventory(archive),
        "sensors": sensors,
        "sites_by_sensors": {str(k): int(v) for k, v in together.items()},
        "tiles_with_label": labels,
        "bytes": stored,
        "compression": round(raw / stored, 2),
        "unpublished_shards": len(_unpublished(archive)),
    }


def inventory(archive: Archive) -> dict[str, Any]:
    """Return what an archive holds, for summaries."""
    catalog = archive.catalog()
    splits: dict[str, int] = defaultdict(int)
    for split, sites in catalog.groupby("split")["site"].nunique().items():
        splits[str(split)] = int(sites)
    return {
        "shards": int(catalog["shard"].nunique()),
        "sites": int(catalog["site"].nunique()),
        "tiles": {str(k): int(v) for k, v in catalog["sensor"].value_counts().sort_index().items()},
        "sites_by_split": dict(splits),
    }
