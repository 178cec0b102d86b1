"""The samples of an archive, shard by shard: how many there are for the plan, which tiles they are made of for the stream.

Nobody holds them all: a shard's samples are made from its own catalog part wherever it is read.
"""

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pandas as pd

from pipeline.archive import Archive
from pipeline.replay import Replay
from pipeline.views import Samples, SensorSet, View, presence, sensor_sets

SHARDS_KEPT = 256
"""Shards whose samples a process remembers: looking up one takes 7 ms, as long as decoding 100 of its tiles."""
SHARDS_AT_ONCE = 64
"""Catalog parts that are looked at together: enough to hide the store's latency, few enough for any memory."""


@dataclass(frozen=True)
class SampleSource:
    """The samples that `view` makes of the tiles of `splits`, as they are when first read: copies of one share `snapshot`.

    `replay` says which of them are seen; all, where it is None.
    """

    archive: Archive = field(compare=False)
    view: View
    splits: tuple[str, ...] = ("train",)
    replay: Replay | None = None
    snapshot: str = field(default_factory=lambda: uuid.uuid4().hex)

    def of_shard(self, shard: str, sensor_set: SensorSet) -> Samples:
        """Return the samples of one shard, in the order in which plans count them."""
        return _of_shard(self, shard, sensor_set)

    def sensor_sets(self) -> list[SensorSet]:
        """Return the sensor sets that the view makes of the archive by default."""
        found: Counter[tuple[SensorSet, str]] = Counter()
        for tiles in self._tiles():
            found.update(presence(tiles))
        return sensor_sets(found, self.archive.sensors, self.view)

    def count(self, sets: list[SensorSet]) -> dict[SensorSet, tuple[list[str], np.ndarray]]:
        """Return for each set the shards that have samples of it, in name order, and how many each."""
        counts: dict[SensorSet, Counter[str]] = {sensor_set: Counter() for sensor_set in sets}
        for tiles in self._tiles():
            for sensor_set, count in counts.items():
                count.update(pd.Series(self.made(tiles, sensor_set).shard).value_counts().to_dict())
        return {s: (sorted(count), np.array([count[shard] for shard in sorted(count)])) for s, count in counts.items()}

    def _tiles(self) -> Iterator[pd.DataFrame]:
        shards = self.archive.published()
        for first in range(0, len(shards), SHARDS_AT_ONCE):
            yield self.read(shards[first : first + SHARDS_AT_ONCE])

    def read(self, shards: list[str]) -> pd.DataFrame:
        """Return where and when the tiles are in these shards that samples are made of."""
        tiles = self.archive.tiles(shards, ("scene",) if self.replay else ())
        tiles = tiles[tiles["split"].isin(self.splits)]
        return self.replay.tiles(tiles) if self.replay else tiles

    def made(self, tiles: pd.DataFrame, sensor_set: SensorSet) -> Samples:
        """Return the samples of what `read` returned."""
        samples = self.view.samples(tiles, sensor_set)
        return self.replay.samples(samples, tiles) if self.replay else samples


@lru_cache(maxsize=SHARDS_KEPT)
def _of_shard(source: SampleSource, shard: str, sensor_set: SensorSet) -> Samples:
    return source.made(source.read([shard]), sensor_set)
