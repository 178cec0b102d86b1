"""Whether test places of a task were seen in pretraining: by their ground, and by their pixels where the ground is not known.

Decides what counts. Pretraining reads the train split of its archive alone (`pipeline.samples.SampleSource`, and statistics are
of that split), so test places of the same archive are new. Of another archive, a test tile was seen if a training tile lies on its
ground, whatever the date, or, where either has no coordinates, if 32 x 32 px of it are the same numbers of the same sensor.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import ray
import shapely

from cluster.run import Run
from jobs.archives import TASK_CPUS
from jobs.evaluation.contenders import titles
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.task import Task
from jobs.progress import gather
from pipeline import storage
from pipeline.archive import Archive, is_archive, open_archive
from pipeline.dates import SECONDS_PER_DAY, seconds_of
from pipeline.errors import InputError

MIN_SHARED = 0.01
"""Of a test tile's area: borders of neighbours touch, and outlines in longitude and latitude are a little off."""
BLOCK_PX = 32


@dataclass(frozen=True)
class Overlap:
    """So many of `num_tests` test samples were seen; `days_apart`: least time between the two images of one ground, NaN unknown."""

    num_seen: int
    num_tests: int
    by: str
    days_apart: float = float("nan")

    def __str__(self) -> str:
        apart = "" if np.isnan(self.days_apart) else f", as little as {self.days_apart:.0f} days apart"
        return f"{self.num_seen} of {self.num_tests} test samples {self.by}{apart}"


def overlaps(asked: Sequence[tuple[Task, TaskSamples]], models: list[Run], allowed: Sequence[str]) -> list[str]:
    """Return what is known of test places that models were pretrained on; an error unless the task is among `allowed`."""
    names = sorted({task.name for task, _ in asked})
    if unknown := sorted(set(allowed) - set(names)):
        raise InputError(f"--allow-overlap names '{unknown[0]}', which is none of the tasks {', '.join(names)}")
    notes = []
    for title, url in dict.fromkeys((t, url) for t, model in zip(titles(models), models) for url in _archives_of(model)):
        for task, samples in asked:
            if is_archive(url):
                found = overlap(open_archive(url), task.archive, samples)
                said = f"{task.name}, {samples.name}: {found} ('{title}', archive '{url}')" if found else ""
            else:
                said = f"{task.name}: archive '{url}' that '{title}' was trained on is not there to be compared with"
            if said and task.name not in allowed:
                raise InputError(f"{said}; evaluate on other places, or add --allow-overlap {task.name}")
            notes += [f"overlap allowed: {said}"] if said else []
    return notes


def _archives_of(model: Run) -> list[str]:
    """Return the archives that a model was trained on, and its teacher, as far as its runs are still there."""
    config = model.path("config.json")
    inputs = storage.read_json(config)["inputs"] if storage.exists(config) else {}
    found = [inputs["archive"]] if "archive" in inputs else []
    return found + (_archives_of(Run(inputs["teacher"], "pretrain")) if "teacher" in inputs else [])


def overlap(trained_on: Archive, archive: Archive, samples: TaskSamples) -> Overlap | None:
    """Return what test samples of a task have in common with the tiles that a model was pretrained on; None: nothing."""
    if trained_on.url == archive.url:
        return _same_archive(trained_on, samples)
    seen = trained_on.catalog()
    tests = test_tiles(archive.catalog(), samples)
    found = by_ground(seen[seen["split"] == "train"], tests)
    return found or _by_pixels(trained_on, seen[seen["split"] == "train"], archive, tests)


def test_tiles(catalog: pd.DataFrame, samples: TaskSamples) -> pd.DataFrame:
    """Return the catalog rows of the sites that test samples are of; column `sample` says of which."""
    chosen = samples.part("test")
    sites = pd.DataFrame({"shard": samples.tiles.shard[chosen], "site": samples.tiles.site[chosen], "sample": chosen})
    sites = sites.drop_duplicates(["shard", "site"])
    return catalog[catalog["sensor"].isin(samples.sensors)].merge(sites, on=["shard", "site"])


def by_ground(seen: pd.DataFrame, tests: pd.DataFrame) -> Overlap | None:
    """Return how many tests lie on the ground of tiles that were seen, of those that have coordinates."""
    seen, placed = seen[seen["geometry"].notna()], tests[tests["geometry"].notna()]
    if seen.empty or placed.empty:
        return None
    tree = shapely.STRtree(seen["geometry"].to_numpy())
    outlines = placed["geometry"].to_numpy()
    test, train = tree.query(outlines, predicate="intersects")
    shared = shapely.area(shapely.intersection(outlines[test], tree.geometries[train]))
    is_seen = shared >= MIN_SHARED * shapely.area(outlines[test])
    if not is_seen.any():
        return None
    test, train = test[is_seen], train[is_seen]
    when = [seconds_of(table["time"].iloc[rows]) / SECONDS_PER_DAY for table, rows in ((placed, test), (seen, train))]
    apart = np.abs(when[0] - when[1])
    least = float(np.nanmin(apart)) if not np.isnan(apart).all() else float("nan")
    count = placed["sample"].iloc[test].nunique()
    return Overlap(int(count), int(tests["sample"].nunique()), "lie on ground that it was trained on", least)


def _same_archive(archive: Archive, samples: TaskSamples) -> Overlap | None:
    """Return the test samples whose sites are in the train split of the catalog: none, unless a task made its own splits."""
    catalog = archive.catalog()
    trained = set(catalog.loc[catalog["split"] == "train", "site"])
    tests = samples.tiles.site[samples.part("test")]
    count = sum(site in trained for site in tests)
    return Overlap(count, len(tests), "are in the split that it was trained on") if count else None


def _by_pixels(trained_on: Archive, seen: pd.DataFrame, archive: Archive, tests: pd.DataFrame) -> Overlap | None:
    """Return how many tests share pixels with tiles that were seen, of pairs of which one has no coordinates."""
    are_placed = seen["geometry"].notna().all() and tests["geometry"].notna().all()
    sensors = sorted(set(seen["sensor"]) & set(tests["sensor"]))
    if are_placed or not sensors:
        return None
    known = _hashes(trained_on, seen[seen["sensor"].isin(sensors)])
    asked = _hashes(archive, tests[tests["sensor"].isin(sensors)])
    every = np.unique(np.concatenate([*known.values(), np.empty(0, np.uint64)]))
    samples = {sample for (_, _, _, sample), found in asked.items() if np.isin(found, every).any()}
    return Overlap(len(samples), int(tests["sample"].nunique()), "have pixels that it was trained on") if samples else None


def _hashes(archive: Archive, tiles: pd.DataFrame) -> Mapping[tuple[str, str, int, int], np.ndarray]:
    """Return (shard, sensor, row, sample) -> hashes of its blocks."""
    remote, shared = ray.remote(num_cpus=TASK_CPUS)(hashes_of_shard), ray.put(archive)
    groups = {(str(shard), str(sensor)): group for (shard, sensor), group in tiles.groupby(["shard", "sensor"])}
    tasks = {remote.remote(shared, *key, group["row"].to_numpy()): key for key, group in groups.items()}
    found: dict[tuple[str, str, int, int], np.ndarray] = {}
    for key, hashes in gather(tasks, "overlap"):
        group = groups[key]
        samples = group["sample"] if "sample" in group else [-1] * len(group)
        found |= {(*key, int(row), int(sample)): part for row, sample, part in zip(group["row"], samples, hashes)}
    return found


def hashes_of_shard(archive: Archive, shard: str, sensor: str, rows: np.ndarray) -> list[np.ndarray]:
    """Return for each tile the hashes of its whole blocks."""
    return [block_hashes(pixels, valid > 0) for pixels, valid in zip(*archive.read(shard, sensor, rows))]


def block_hashes(pixels: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Return a number for each 32 x 32 px of (band, y, x), counted from the corner, that are all valid and not all one value."""
    found = []
    height, width = is_valid.shape
    for y in range(0, height - BLOCK_PX + 1, BLOCK_PX):
        for x in range(0, width - BLOCK_PX + 1, BLOCK_PX):
            window = slice(y, y + BLOCK_PX), slice(x, x + BLOCK_PX)
            block = np.ascontiguousarray(pixels[:, *window])
            if is_valid[window].all() and (block != block[:, :1, :1]).any():
                found.append(int.from_bytes(hashlib.blake2b(block.tobytes(), digest_size=8).digest(), "little"))
    return np.array(found, np.uint64)
