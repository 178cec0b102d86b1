"""What every job that fills an archive does at its end: statistics of the train split; and proof by `verify`."""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import ray

from cluster.counters import count
from jobs.progress import gather
from pipeline import storage
from pipeline.archive import NUM_READERS, Archive, DamagedShard, open_archive
from pipeline.errors import InputError
from pipeline.sensors import Sensor
from pipeline.statistics import SensorStatistics, summarise

TASK_CPUS = 1


def write_statistics(archive: Archive) -> None:
    """Bring statistics.json up to the archive's content, from what the shards say of themselves.

    The content is looked at again after writing, so whichever of several jobs writes last leaves what is true.
    """
    url = storage.join(archive.url, "statistics.json")
    while not storage.exists(url) or storage.read_json(url).get("archive_digest") != archive.digest():
        try:
            storage.write_json(url, _statistics(archive))
        except FileNotFoundError:  # another job is writing one of the shards anew
            continue


def _statistics(archive: Archive) -> dict[str, Any]:
    digest, catalog = archive.digest(), archive.catalog()
    shards = sorted(catalog.loc[catalog["split"] == "train", "shard"].unique())
    totals: dict[str, SensorStatistics] = {}
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for part in pool.map(archive.shard_statistics, shards):  # in one order, so that sums are the same every time
            for name, found in part.items():
                totals[name] = totals[name].merge(found) if name in totals else found
    known = open_archive(archive.url).sensors  # another job may have added some since ours began
    sensors = {name: summarise(found, known[name]) for name, found in sorted(totals.items()) if found.count}
    return {"split": "train", "archive_digest": digest, "sensors": sensors}


@ray.remote(num_cpus=TASK_CPUS)
def _check(archive: Archive, shard: str, rows: pd.DataFrame) -> list[str]:
    faults = []
    try:
        if not archive.is_as_published(shard, archive.whole_rows(shard)):
            faults.append(f"{shard}: its catalog part is not what it was published with")
    except DamagedShard as error:
        faults.append(str(error))
    for name, group in rows.groupby("sensor"):
        sensor = archive.sensors.get(str(name))
        if sensor is None:
            faults.append(f"{shard}: sensor '{name}' is not in the archive's sensors")
            continue
        if sorted(group["row"]) != list(range(len(group))):
            faults.append(f"{shard}: rows of {name} in the catalog are not 0 … {len(group) - 1}")
        try:
            stored, is_valid = archive.read(shard, sensor.name, np.arange(len(group)))
        except Exception as error:  # whatever a damaged file makes the decoder say is the finding
            faults.append(f"{shard}: {name} cannot be read ({type(error).__name__}: {error})")
            continue
        faults += [f"{shard}: {name} {fault}" for fault in _range_faults(sensor, stored, is_valid)]
        if not np.allclose(is_valid.mean(axis=(1, 2)), group.sort_values("row")["valid_fraction"], atol=1e-6):
            faults.append(f"{shard}: {name} valid fractions differ from the catalog's")
        faults += [f"{shard}: {name} {fault}" for fault in _map_faults(archive, shard, sensor.name, group)]
    return faults


def _map_faults(archive: Archive, shard: str, sensor: str, rows: pd.DataFrame) -> list[str]:
    """Return what is wrong with the maps of labels that the catalog says these tiles have."""
    stated, faults = [json.loads(text) for text in rows.sort_values("row")["labels"]], []
    for name, label in archive.labels.items():
        if label.kind != "map" or not any(name in found for found in stated):
            continue
        try:
            found = archive.read_map(shard, sensor, name, np.arange(len(rows)))
            counts = [found[row].counts(len(label.classes)) for row in range(len(rows))]
        except Exception as error:  # whatever a damaged file makes the decoder say is the finding
            faults.append(f"map '{name}' cannot be read ({type(error).__name__}: {error})")
            continue
        if any(count != known.get(name, [0] * len(count)) for count, known in zip(counts, stated)):
            faults.append(f"map '{name}' has other classes than the catalog says")
    return faults


def _range_faults(sensor: Sensor, stored: np.ndarray, is_valid: np.ndarray) -> list[str]:
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
    faults, sizes = [], catalog["shard"].value_counts()
    for shard, found in gather(tasks, "verify"):
        count("tiles", int(sizes[shard]), job="verify")
        faults += found
    twice = int(catalog.duplicated(["site", "sensor", "scene", "order"]).sum())
    if twice:
        faults.append(f"{twice} tiles are in the catalog twice")
    if not faults and archive.read_statistics() != _statistics(archive):
        faults.append("statistics.json is not that of the train split")
    if faults:
        shown = "; ".join(sorted(faults)[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise InputError(
            f"archive '{url}' has {len(faults)} faults: {shown}; run 'terraloom repair {url}' and then the jobs that wrote it again"
        )
    unpublished = set(storage.names(storage.join(url, "shards"))) - {f"{shard}.zarr" for shard in catalog["shard"]}
    return {
        "archive": archive.url,
        "digest": archive.digest(),
        "faults": 0,
        "unpublished_shards": len(unpublished),
        **inventory(archive),
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
