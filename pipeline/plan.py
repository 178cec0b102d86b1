"""Which sample is seen when: a pure function of (samples, seed, step), known before anything is read.

Every step has one sensor set for all ranks. A set has a fixed number of lanes; each lane walks its own shards, pass
after pass, shuffling inside a window of several shards, and gives one micro-batch to every step of its set. Ranks own
lanes, so neither order nor global batch depends on how many ranks there are, and resuming needs only the step.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.views import SensorSet


@dataclass(frozen=True)
class Window:
    """Part of one pass of one lane: samples (by number in the set) in the order in which they are seen.

    `start` is the position of the first in the lane's endless sequence.
    """

    lane: int
    start: int
    samples: np.ndarray


class SetPlan:
    """The lanes of one sensor set. `samples` is `views.samples`; `batch_size` samples a micro-batch and lane."""

    def __init__(
        self,
        sensor_set: SensorSet,
        samples: pd.DataFrame,
        num_lanes: int,
        batch_size: int,
        window_shards: int,
        seed: int,
    ):
        if len(samples) < num_lanes:
            raise InputError(
                f"{len(samples)} samples of {', '.join(sensor_set)} for {num_lanes} lanes; use fewer lanes or more data"
            )
        self.sensor_set = sensor_set
        self.samples = samples
        self.num_lanes = num_lanes
        self.batch_size = batch_size
        self.window_shards = window_shards
        self.seed = seed
        self._pieces = self._deal(samples)

    def _deal(self, samples: pd.DataFrame) -> list[list[np.ndarray]]:
        """Return each lane's pieces: sample numbers of whole shards, or of even parts where shards are too few."""
        by_shard = [np.asarray(numbers) for _, numbers in sorted(samples.groupby("shard").indices.items())]
        parts = math.ceil(self.num_lanes / len(by_shard))
        pieces = [numbers[part::parts] for numbers in by_shard for part in range(parts)]
        pieces = sorted((piece for piece in pieces if len(piece)), key=lambda piece: (-len(piece), piece[0]))
        lanes: list[list[np.ndarray]] = [[] for _ in range(self.num_lanes)]
        for piece in pieces:
            min(lanes, key=lambda lane: sum(map(len, lane))).append(piece)
        return lanes

    def lane_length(self, lane: int) -> int:
        """Return the number of samples in one pass of `lane`."""
        return sum(map(len, self._pieces[lane]))

    def windows(self, lane: int, position: int) -> Iterator[Window]:
        """Yield the windows of `lane`, without end, from the one that holds `position`."""
        length = self.lane_length(lane)
        index = position // length
        while True:
            start = index * length
            for window in self._pass(lane, index):
                if start + len(window) > position:
                    yield Window(lane, start, window)
                start += len(window)
            index += 1

    def _pass(self, lane: int, index: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([self.seed, *_key(self.sensor_set), lane, index])
        pieces = self._pieces[lane]
        order = rng.permutation(len(pieces))
        for first in range(0, len(pieces), self.window_shards):
            inside = np.concatenate([pieces[i] for i in order[first : first + self.window_shards]])
            yield rng.permutation(inside)

    def micro_batch(self, lane: int, index: int) -> np.ndarray:
        """Return the sample numbers of the lane's `index`-th micro-batch (what the stream must deliver)."""
        wanted: list[int] = []
        position = index * self.batch_size
        for window in self.windows(lane, position):
            skip = max(0, position - window.start)
            wanted += window.samples[skip : skip + self.batch_size - len(wanted)].tolist()
            position = window.start + len(window.samples)
            if len(wanted) == self.batch_size:
                return np.array(wanted)
        raise AssertionError("windows are endless")


@dataclass(frozen=True)
class Step:
    """`index` counts the earlier steps of the same sensor set."""

    step: int
    sensor_set: int
    index: int


class Plan:
    """The sensor sets of a run and the order in which steps take them, in proportion to `weights`."""

    def __init__(self, sets: list[SetPlan], weights: list[float]):
        if len(sets) != len(weights) or min(weights) <= 0:
            raise InputError(f"{len(sets)} sensor sets need as many positive weights, found {weights}")
        self.sets = sets
        self.weights = np.array(weights) / sum(weights)

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield the steps from `start` up to `stop`; always the set that lags its share most."""
        counts = np.zeros(len(self.sets), int)
        for step in range(stop):
            chosen = int(np.argmax(self.weights * (step + 1) - counts))
            if step >= start:
                yield Step(step, chosen, int(counts[chosen]))
            counts[chosen] += 1

    def lanes_of(self, rank: int, world_size: int, set_index: int) -> list[int]:
        """Return the lanes that `rank` serves: rank, rank + world size, …"""
        num_lanes = self.sets[set_index].num_lanes
        if num_lanes % world_size:
            raise InputError(f"{num_lanes} lanes cannot be shared evenly by {world_size} workers; use a divisor")
        return list(range(rank, num_lanes, world_size))


def _key(sensor_set: SensorSet) -> tuple[int, ...]:
    return tuple("+".join(sensor_set).encode())
