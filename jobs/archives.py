"""What every job that fills an archive does at its end: statistics of the train split, and proof by `verify`."""

from collections import defaultdict
from typing import Any

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
    orphans = set(storage.names(storage.join(url, "shards"))) - {f"{shard}.zarr" for shard in catalog["shard"]}
    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise InputError(
            f"archive '{url}' has {len(faults)} faults: {shown}; remove the catalog parts of these shards and run the job again"
        )
    return {"archive": archive.url, "faults": 0, "unpublished_shards": len(orphans), **inventory(archive)}


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
