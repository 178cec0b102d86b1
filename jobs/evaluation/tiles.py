"""The pixels of samples, read from the archive when they are asked for and kept as far as memory goes."""

import numpy as np
import torch

from cluster.batches import to_tiles
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.samples import TaskSamples
from models.batch import Batch
from pipeline.archive import Archive
from pipeline.augment import SensorArrays, turn

KEPT_BYTES = 2 * 2**30
"""Of stored tiles; further ones are read again each time."""


class TileReader:
    """Tiles of one set of samples. `perturbation` changes them as they are read."""

    def __init__(self, archive: Archive, samples: TaskSamples, perturbation: Perturbation | None = None) -> None:
        self._archive, self._samples, self._perturbation = archive, samples, perturbation
        self._kept: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = {}
        self._bytes = 0

    def arrays(self, chosen: np.ndarray, symmetries: np.ndarray | None = None) -> dict[str, SensorArrays]:
        """Return the tiles of the samples numbered `chosen`, each under its symmetry of the square."""
        tiles, result = self._samples.tiles, {}
        for name in self._samples.sensors:
            sensor, rows, shards = self._archive.sensors[name], tiles.rows[name][chosen], tiles.shard[chosen]
            found = self._stored(name, {(str(s), int(r)) for s, dates in zip(shards, rows) for r in dates})
            pairs = [[found[str(s), int(r)] for r in dates] for s, dates in zip(shards, rows)]
            stored, is_valid = (np.stack([[pair[part] for pair in dates] for dates in pairs]) for part in (0, 1))
            pixels = sensor.to_physical(stored)
            arrays = SensorArrays(sensor, pixels, is_valid, np.ones(rows.shape, bool), tiles.time_days[name][chosen])
            if self._perturbation is not None:
                arrays = self._perturbation.arrays(arrays, np.random.default_rng(chosen.tolist()))
            result[name] = arrays if symmetries is None else turn(arrays, symmetries)
        return result

    def batch(self, chosen: np.ndarray, symmetries: np.ndarray | None = None) -> Batch:
        """Return the same as models take it."""
        arrays = self.arrays(chosen, symmetries)
        lonlat = torch.from_numpy(self._samples.tiles.lonlat_deg[chosen])
        return Batch({name: to_tiles(found) for name, found in arrays.items()}, lonlat)

    def _stored(self, sensor: str, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        found = {key: self._kept[sensor, *key] for key in wanted if (sensor, *key) in self._kept}
        missing = wanted - found.keys()
        for shard in {shard for shard, _ in missing}:
            rows = np.array(sorted(row for other, row in missing if other == shard))
            for row, stored, valid in zip(rows, *self._archive.read(shard, sensor, rows)):
                pair = stored.copy(), valid > 0
                found[shard, int(row)] = pair
                if self._bytes < KEPT_BYTES:
                    self._kept[sensor, shard, int(row)] = pair
                    self._bytes += pair[0].nbytes + pair[1].nbytes
        return found
