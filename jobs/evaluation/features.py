"""Features of tiles, made once for all cells that want them and kept in the run folder.

A shard's features of one sensor are a folder of NumPy files, published whole: which rows, what each is pooled to, NaN where it
has no valid pixel, and, for dense tasks, the map of every stage. Maps are kept in half precision after a LayerNorm, which bounds
them; decoders begin with one in any case. Dates of a place are looked at together by an encoder that has learned to: rows then are
stacks of its dates.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cluster.batches import to_tiles
from cluster.embedding import FeatureMaker, tiles_of
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.samples import TaskSamples
from models.encoder import Encoder
from models.tuned import compared_dates
from pipeline import storage
from pipeline.archive import Archive
from pipeline.augment import SensorArrays

FOLDER = "features"
BATCH_SIZE = 32


@dataclass(frozen=True)
class FeatureKey:
    """What features are of: `digest` of the weights, and whether maps are kept besides what tiles are pooled to."""

    maker: FeatureMaker
    digest: str
    archive: Archive
    has_maps: bool
    perturbation: Perturbation | None = None
    num_dates: int = 1
    """So many dates, at most, are looked at together."""

    @property
    def name(self) -> str:
        parts = [repr(self.maker), self.digest, self.archive.url, self.has_maps, repr(self.perturbation), self.num_dates]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def stacks(self, rows: np.ndarray) -> np.ndarray:
        """Return (M, T') stacks of rows that are looked at together, from those of samples (N, T): T' is T, or 1."""
        return rows if rows.shape[1] <= self.num_dates else rows.reshape(-1, 1)


class FeatureStore:
    """The features below a run's folder."""

    def __init__(self, run_url: str) -> None:
        self._url = storage.join(run_url, FOLDER)

    def url(self, key: FeatureKey, sensor: str, shard: str, dates: int) -> str:
        return storage.join(self._url, key.name, sensor, f"{shard}x{dates}")

    def has(self, key: FeatureKey, sensor: str, shard: str, dates: int) -> bool:
        return storage.exists(self.url(key, sensor, shard, dates))

    def refuse(self, key: FeatureKey, reason: str) -> None:
        """Note that an encoder refuses these tiles, as it should."""
        storage.write_bytes(self._refusal_url(key), reason.encode())

    def refusal(self, key: FeatureKey) -> str:
        """Return why the encoder refuses these tiles; empty where it does not."""
        return storage.read_bytes(self._refusal_url(key)).decode() if storage.exists(self._refusal_url(key)) else ""

    def _refusal_url(self, key: FeatureKey) -> str:
        return storage.join(self._url, f"{key.name}.refused")

    def make(self, key: FeatureKey, sensor: str, shard: str, stacks: np.ndarray) -> None:
        """Make and publish the features of the rows in `stacks` (M, T') of one sensor in one shard."""
        torch.set_num_threads(1)
        found, lonlat_deg = tiles_of(key.archive, shard, sensor, stacks.ravel())
        arrays, lonlat_deg = stacked(found, stacks.shape), lonlat_deg[:: stacks.shape[1]].copy()
        if key.perturbation is not None:
            seed = int(hashlib.sha256(f"{sensor} {shard}".encode()).hexdigest()[:16], 16)
            arrays = key.perturbation.arrays(arrays, np.random.default_rng(seed))
        if key.has_maps:
            pooled, maps = _maps(key.maker.load(), arrays, lonlat_deg)  # type: ignore[attr-defined]
        else:
            pooled, maps = key.maker.features(arrays, lonlat_deg), []
        with storage.staged_folder(self.url(key, sensor, shard, stacks.shape[1])) as folder:
            np.save(folder / "rows.npy", stacks)
            np.save(folder / "pooled.npy", where_known(pooled, arrays))
            for number, values in enumerate(maps):
                np.save(folder / f"map{number}.npy", values)

    def pooled(self, key: FeatureKey, samples: TaskSamples, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Return sensor -> (N, T, D) of the samples numbered `chosen`."""
        return {name: self._array(key, samples, chosen, name, "pooled") for name in samples.sensors}

    def maps(self, key: FeatureKey, samples: TaskSamples, chosen: np.ndarray) -> dict[str, list[np.ndarray]]:
        """Return sensor -> for each stage (N, T, y, x, D) float16 of the samples numbered `chosen`."""
        result: dict[str, list[np.ndarray]] = {}
        for name in samples.sensors:
            dates = key.stacks(samples.tiles.rows[name]).shape[1]
            files = storage.names(self.url(key, name, str(samples.tiles.shard[chosen[0]]), dates))
            stages = sorted(f.removesuffix(".npy") for f in files if f.startswith("map"))
            result[name] = [self._array(key, samples, chosen, name, stage) for stage in stages]
        return result

    def _array(self, key: FeatureKey, samples: TaskSamples, chosen: np.ndarray, sensor: str, name: str) -> np.ndarray:
        rows, shards = samples.tiles.rows[sensor][chosen], samples.tiles.shard[chosen]
        result: np.ndarray | None = None
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            stacks = key.stacks(rows[places])
            with storage.local_copy(self.url(key, sensor, str(shard), stacks.shape[1])) as folder:
                known, values = np.load(Path(folder) / "rows.npy"), np.load(Path(folder) / f"{name}.npy", mmap_mode="r")
                number = {stack: index for index, stack in enumerate(map(tuple, known.tolist()))}
                found = values[[number[stack] for stack in map(tuple, stacks.tolist())]]
            if result is None:
                result = np.empty((*rows.shape, *found.shape[2:]), found.dtype)
            result[places] = found.reshape(len(places), *result.shape[1:])
        assert result is not None
        return result


def combine(features: dict[str, np.ndarray]) -> np.ndarray:
    """Return (N, D') from (N, T, D) per sensor: what probes see of the dates of each."""
    return np.concatenate([part for values in features.values() for part in compared_dates(values)], axis=1)


def where_known(pooled: np.ndarray, arrays: SensorArrays) -> np.ndarray:
    """Return pooled (N, T, D), NaN where a tile has no valid pixel, and only there: what an encoder gets wrong is infinite."""
    is_known = (arrays.is_valid & arrays.is_present[..., None, None]).any((2, 3))
    return np.where(is_known[..., None], np.where(np.isfinite(pooled), pooled, np.inf), np.nan)


def stacked(arrays: SensorArrays, shape: tuple[int, int]) -> SensorArrays:
    """Return tiles (N, T) as `shape` (M, T'), in order."""
    fields = {name: getattr(arrays, name) for name in ("pixels", "is_valid", "is_present", "time_days")}
    return replace(arrays, **{name: values.reshape(*shape, *values.shape[2:]) for name, values in fields.items()})


@torch.no_grad()
def _maps(encoder: Encoder, arrays: SensorArrays, lonlat_deg: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return (N, T, D) float32 and for each stage (N, T, y, x, D) float16."""
    tiles, lonlat = to_tiles(arrays), torch.from_numpy(lonlat_deg)
    pooled, maps = [], []
    for first in range(0, len(lonlat), BATCH_SIZE):
        part = slice(first, first + BATCH_SIZE)
        features, is_valid = encoder.examined(tiles.part(part), arrays.sensor.name, lonlat[part])
        shape = (-1, arrays.is_present.shape[1])
        pooled.append(encoder.pool(features, is_valid).unflatten(0, shape).numpy())
        maps.append([F.layer_norm(m.float(), m.shape[-1:]).half().unflatten(0, shape).numpy() for m in features.maps])
    return np.concatenate(pooled), [np.concatenate(stage) for stage in zip(*maps)]
