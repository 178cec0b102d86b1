"""How far new scenes are from what the archive holds: their pixels band by band, and what the champion makes of them.

Seasons and sites differ by themselves, so a distance is measured against those that the archive's own scenes have from one
another: `none`, as far as they are; `small`, up to twice as far; `large`, farther. It is told to people and decides nothing.

Pixels: the first Wasserstein distance between histograms of a band, in standard deviations of the old pixels. Embeddings: the
energy distance (Székely & Rizzo 2013, doi 10.1016/j.jspi.2013.03.018), in units of the mean distance between old tiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import ray
from scipy.spatial.distance import cdist

from cluster.embedding import ModelFeatures, features_of_shard
from jobs.archives import TASK_CPUS
from jobs.progress import gather
from jobs.retraining.context import Context
from models.errors import InputError as ModelInputError
from pipeline import storage
from pipeline.archive import Archive, open_archive
from pipeline.sensors import Sensor
from pipeline.statistics import NUM_BINS, SensorStatistics, statistics_of

SCENES, TILES = 24, 24
"""Scenes of a sensor, old and new, that are looked at, spread over time, and tiles of each."""
FEW_TILES = 4
"""A scene with fewer says little of how far scenes usually are."""
LEAST_BAND, LEAST_EMBEDDING = 0.1, 0.1
"""Distances that nobody minds, where the archive's scenes are nearer to one another or too few to tell."""
WORDS = ("none", "small", "large")


@dataclass(frozen=True)
class Look:
    """What was found in some tiles of a scene: statistics of their pixels, embeddings (N, D); or why there are no embeddings."""

    pixels: SensorStatistics
    embeddings: np.ndarray | None
    refusal: str = ""


def drift(context: Context) -> dict[str, Any]:
    """Return the drift of the round's scenes, sensor by sensor, with the scenes that are farthest."""
    archive, maker = open_archive(context.schedule.archive), ModelFeatures(storage.join(context.champion.model, "model"))
    new, withheld = (frozenset(names) for names in context.scenes())
    new &= frozenset(context.round.scenes)
    catalog = archive.catalog()
    catalog = catalog[(catalog["split"] == "train") & ~catalog["scene"].isin(withheld)]
    known = {spec.name for spec in maker.load().config.sensors}
    found = {}
    for name, tiles in catalog.groupby("sensor"):
        is_new = tiles["scene"].isin(new)
        if is_new.any():
            old, come = (
                look_at(archive, str(name), chosen(part), maker, str(name) in known) for part in (tiles[~is_new], tiles[is_new])
            )
            found[str(name)] = sensor_drift(archive.sensors[str(name)], old, come)
    return {"word": _worst(part["word"] for part in found.values()), "sensors": found}


def chosen(tiles: pd.DataFrame) -> pd.DataFrame:
    """Return some tiles of some scenes: the same for the same tiles."""
    scenes = tiles.groupby("scene")["time"].min().sort_values(kind="stable").index.to_numpy()
    scenes = scenes[np.unique(np.linspace(0, len(scenes) - 1, SCENES).astype(int))] if len(scenes) else scenes
    parts = [tiles[tiles["scene"] == scene].sort_values(["shard", "row"]) for scene in scenes]
    return pd.concat([part.iloc[np.unique(np.linspace(0, len(part) - 1, TILES).astype(int))] for part in parts] or [tiles])


def look_at(archive: Archive, sensor: str, tiles: pd.DataFrame, maker: ModelFeatures, has_encoder: bool) -> dict[str, Look]:
    """Return scene -> what its tiles look like."""
    remote, shared = ray.remote(num_cpus=TASK_CPUS)(_look), ray.put(archive)
    groups = {str(shard): group for shard, group in tiles.groupby("shard")}
    tasks = {
        remote.remote(
            shared, sensor, shard, group["row"].to_numpy(), group["scene"].tolist(), maker if has_encoder else None
        ): shard
        for shard, group in groups.items()
    }
    parts: dict[str, list[tuple[str, Look]]] = {}
    for shard, looks in gather(tasks, "drift"):
        for scene, look in looks.items():
            parts.setdefault(scene, []).append((shard, look))
    return {scene: reduce(_merged, (look for _, look in sorted(of, key=lambda one: one[0]))) for scene, of in sorted(parts.items())}


def _look(
    archive: Archive, sensor: str, shard: str, rows: np.ndarray, scenes: list[str], maker: ModelFeatures | None
) -> dict[str, Look]:
    stored, is_valid = archive.read(shard, sensor, rows)
    embeddings, refusal = None, ""
    if maker is not None:
        try:
            embeddings = features_of_shard(archive, maker, shard, sensor, rows)
        except ModelInputError as error:  # it knows these bands in other ranges
            refusal = str(error)
    found = {}
    for scene in dict.fromkeys(scenes):
        here = np.flatnonzero(np.array(scenes) == scene)
        pixels = statistics_of(archive.sensors[sensor], [(stored[i], is_valid[i] > 0) for i in here])
        found[scene] = Look(pixels, None if embeddings is None else embeddings[here], refusal)
    return found


def _merged(one: Look, other: Look) -> Look:
    parts = [part for part in (one.embeddings, other.embeddings) if part is not None]
    return Look(one.pixels.merge(other.pixels), np.concatenate(parts) if parts else None, one.refusal or other.refusal)


def sensor_drift(sensor: Sensor, old: Mapping[str, Look], new: Mapping[str, Look]) -> dict[str, Any]:
    """Return distance, what is usual, and a word, for each band and for embeddings, of the new scene that is farthest in it."""
    if not old:
        return {"word": "large", "because": "the archive had no tile of this sensor", "tiles": _tiles(new)}
    whole = _all(old)
    std = np.sqrt(whole.pixels.deviation / max(1, whole.pixels.count))
    others = {name: _all({n: look for n, look in old.items() if n != name}) for name in old} if len(old) > 1 else {}
    usual_of = {name: other for name, other in others.items() if _size(old[name]) >= FEW_TILES}
    usual = [band_distances(old[name].pixels, other.pixels, sensor, std) for name, other in usual_of.items()]
    limits = np.max([*usual, np.full(len(sensor.bands), LEAST_BAND)], axis=0)
    far = {name: band_distances(look.pixels, whole.pixels, sensor, std) for name, look in new.items()}
    bands = {}
    for number, band in enumerate(sensor.band_names):
        scene = max(far, key=lambda name: far[name][number])
        bands[band] = _judged(float(far[scene][number]), float(limits[number]), scene)
    embedding = _embedding_drift(old, usual_of, whole, new)
    return {
        "word": _worst([embedding["word"], *(b["word"] for b in bands.values())]),
        "tiles": _tiles(new),
        "bands": bands,
        "embedding": embedding,
    }


def _embedding_drift(old: Mapping[str, Look], usual_of: Mapping[str, Look], whole: Look, new: Mapping[str, Look]) -> dict[str, Any]:
    refusal = next((look.refusal for look in new.values() if look.refusal), "")
    if refusal:
        return {"word": "large", "because": f"the champion refuses these pixels: {refusal}"}
    if whole.embeddings is None:
        return {"word": "none", "because": "the champion does not know this sensor"}
    of_old, of_others, of_new = (
        {name: look.embeddings for name, look in looks.items() if look.embeddings is not None} for looks in (old, usual_of, new)
    )
    unit = max(float(cdist(whole.embeddings, whole.embeddings).mean()), 1e-12)
    between = [energy_distance(of_old[name], others) / unit for name, others in of_others.items()]
    far = {name: energy_distance(found, whole.embeddings) / unit for name, found in of_new.items()}
    scene = max(far, key=lambda name: far[name])
    return _judged(far[scene], max([*between, LEAST_EMBEDDING]), scene)


def band_distances(one: SensorStatistics, other: SensorStatistics, sensor: Sensor, std: np.ndarray) -> np.ndarray:
    """Return (band,): the first Wasserstein distance between the histograms of two parts, in units of `std` (band,)."""
    low, high = sensor.valid_range
    shares = [np.cumsum(part.histogram, 1) / np.maximum(1, part.histogram.sum(1, keepdims=True)) for part in (one, other)]
    return np.abs(shares[0] - shares[1]).sum(1) * ((high - low) / NUM_BINS) / np.maximum(std, 1e-12)


def energy_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two samples (N, D) and (M, D): 0 for equal distributions."""
    return float(2 * cdist(one, other).mean() - cdist(one, one).mean() - cdist(other, other).mean())


def _judged(distance: float, usual: float, scene: str) -> dict[str, Any]:
    word = WORDS[int(distance > usual) + int(distance > 2 * usual)]
    return {"word": word, "distance": round(distance, 4), "usual": round(usual, 4), "farthest": scene}


def _all(looks: Mapping[str, Look]) -> Look:
    return reduce(_merged, looks.values())


def _size(look: Look) -> int:
    return FEW_TILES if look.embeddings is None else len(look.embeddings)


def _tiles(looks: Mapping[str, Look]) -> int:
    return sum(0 if look.embeddings is None else len(look.embeddings) for look in looks.values())


def _worst(words: Any) -> str:
    return max(words, key=WORDS.index, default="none")
