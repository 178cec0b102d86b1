"""Which sample is seen when: a pure function of (samples in each shard, seed, step), known before anything is read.

Every step has one sensor set for all ranks. A set has a fixed number of lanes; each lane walks its own shards, pass
after pass, shuffling inside a window of several shards, and gives one micro-batch to every step of its set. Ranks own
lanes, so neither order nor global batch depends on how many ranks there are, and resuming needs only the step.

A plan holds numbers of samples, not samples. Every shuffle has a generator of its own, found by counting (Philox): any
window can be had without the ones before it.
"""

import heapq
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.errors import InputError
from pipeline.views import SensorSet

CYCLE = 1000
"""Steps after which the order of the sensor sets repeats."""


@dataclass(frozen=True)
class Window:
    """Part of one pass of one lane: samples in the order in which they are seen.

    `start` is the position of the first in the lane's endless sequence. `shard` (N,) are places in the set's shards,
    `number` (N,) counts the samples of a shard.
    """

    lane: int
    start: int
    shard: np.ndarray
    number: np.ndarray

    @property
    def stop(self) -> int:
        return self.start + len(self.number)

    def between(self, start: int, stop: int) -> "Window":
        """Return what it holds of positions `start` to `stop`."""
        first = max(start, self.start)
        part = slice(first - self.start, max(first, stop) - self.start)
        return Window(self.lane, first, self.shard[part], self.number[part])

    def pieces(self, size: int) -> Iterator["Window"]:
        """Yield the window in parts of `size` samples."""
        for first in range(0, len(self.number), size):
            part = slice(first, first + size)
            yield Window(self.lane, self.start + first, self.shard[part], self.number[part])


@dataclass(frozen=True)
class SetPlan:
    """The lanes of one sensor set: `sizes[i]` samples in shard `shards[i]`, `batch_size` samples a micro-batch and lane."""

    sensor_set: SensorSet
    shards: Sequence[str]
    sizes: np.ndarray
    num_lanes: int
    batch_size: int
    window_shards: int
    seed: int

    def __post_init__(self) -> None:
        if self.sizes.sum() < self.num_lanes:
            raise InputError(
                f"{self.sizes.sum()} samples of {', '.join(self.sensor_set)} for {self.num_lanes} lanes; "
                "use fewer lanes or more data"
            )

    @cached_property
    def first(self) -> np.ndarray:
        """The number in the set of each shard's first sample."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def _parts(self) -> int:
        """Pieces of a shard: more than one where shards are fewer than lanes. Piece p is part p % parts of shard p // parts."""
        return math.ceil(self.num_lanes / len(self.shards))

    @cached_property
    def _piece_sizes(self) -> np.ndarray:
        return np.maximum(0, (self.sizes[:, None] - np.arange(self._parts) + self._parts - 1) // self._parts).ravel()

    @cached_property
    def _pieces(self) -> list[np.ndarray]:
        """The pieces of each lane: largest first, always to the lane that has least."""
        sizes = self._piece_sizes.tolist()
        order = np.argsort(-self._piece_sizes, kind="stable")
        lanes: list[list[int]] = [[] for _ in range(self.num_lanes)]
        least = [(0, lane) for lane in range(self.num_lanes)]
        for piece in order[self._piece_sizes[order] > 0].tolist():
            total, lane = least[0]
            lanes[lane].append(piece)
            heapq.heapreplace(least, (total + sizes[piece], lane))
        return [np.array(pieces) for pieces in lanes]

    def lane_length(self, lane: int) -> int:
        """Return the number of samples in one pass of `lane`."""
        return int(self._piece_sizes[self._pieces[lane]].sum())

    def windows(self, lane: int, position: int) -> Iterator[Window]:
        """Yield the windows of `lane`, without end, from the one that holds `position`."""
        length = self.lane_length(lane)
        index, inside = divmod(position, length)
        while True:
            order = self._generator(lane, index, 0).permutation(self._pieces[lane])
            stops = np.cumsum(self._piece_sizes[order])
            skipped = int(np.searchsorted(stops, inside, "right")) // self.window_shards * self.window_shards
            for first in range(skipped, len(order), self.window_shards):
                start = index * length + (int(stops[first - 1]) if first else 0)
                yield self._window(lane, start, order[first : first + self.window_shards], self._generator(lane, index, 1 + first))
            index, inside = index + 1, 0

    def _window(self, lane: int, start: int, pieces: np.ndarray, generator: np.random.Generator) -> Window:
        shards = pieces // self._parts
        numbers = [np.arange(piece % self._parts, self.sizes[shard], self._parts) for piece, shard in zip(pieces, shards)]
        order = generator.permutation(sum(map(len, numbers)))
        return Window(lane, start, np.repeat(shards, list(map(len, numbers)))[order], np.concatenate(numbers)[order])

    def _generator(self, lane: int, index: int, draw: int) -> np.random.Generator:
        """Return the source of draw `draw` in pass `index` of `lane`."""
        key = np.array([self.seed, zlib.crc32("+".join(self.sensor_set).encode())], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, draw, index, lane], np.uint64)))

    def micro_batch(self, lane: int, index: int) -> np.ndarray:
        """Return the sample numbers of the lane's `index`-th micro-batch (what the stream must deliver)."""
        start, stop = index * self.batch_size, (index + 1) * self.batch_size
        found: list[np.ndarray] = []
        for window in self.windows(lane, start):
            inside = slice(max(0, start - window.start), stop - window.start)
            found.append(self.first[window.shard[inside]] + window.number[inside])
            if window.stop >= stop:
                break
        return np.concatenate(found)


@dataclass(frozen=True)
class Step:
    """`index` counts the earlier steps of the same sensor set."""

    step: int
    sensor_set: int
    index: int


class Plan:
    """The sensor sets of a run and the order in which steps take them, in proportion to `weights` (to 1 / `CYCLE`)."""

    def __init__(self, sets: list[SetPlan], weights: list[float]):
        if len(sets) != len(weights) or min(weights) <= 0:
            raise InputError(f"{len(sets)} sensor sets need as many positive weights, found {weights}")
        self.sets = sets
        self._cycle = _cycle(np.array(weights) / sum(weights)).tolist()
        taken = np.eye(len(sets), dtype=int)[self._cycle]
        self._taken = np.concatenate([np.zeros((1, len(sets)), int), np.cumsum(taken, 0)]).tolist()

    def taken(self, step: int) -> list[int]:
        """Return how many steps before `step` each sensor set has."""
        cycles, place = divmod(step, CYCLE)
        return [cycles * whole + part for whole, part in zip(self._taken[CYCLE], self._taken[place])]

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Yield the steps from `start` up to `stop`."""
        counts = self.taken(start)
        for step in range(start, stop):
            chosen = self._cycle[step % CYCLE]
            yield Step(step, chosen, counts[chosen])
            counts[chosen] += 1

    def lanes_of(self, rank: int, world_size: int, set_index: int) -> list[int]:
        """Return the lanes that `rank` serves: rank, rank + world size, ..."""
        num_lanes = self.sets[set_index].num_lanes
        if num_lanes % world_size:
            raise InputError(f"{num_lanes} lanes cannot be shared evenly by {world_size} workers; use a divisor")
        return list(range(rank, num_lanes, world_size))


def _cycle(weights: np.ndarray) -> np.ndarray:
    """Return the sensor set of each step of a cycle: always the one that lags its share most. Each comes at least once."""
    shares = np.maximum(1, np.floor(weights * CYCLE)).astype(int)
    for _ in range(CYCLE - shares.sum()):
        shares[np.argmax(weights * CYCLE - shares)] += 1
    for _ in range(shares.sum() - CYCLE):
        shares[np.argmax(shares - weights * CYCLE)] -= 1
    counts, chosen = np.zeros(len(shares), int), np.zeros(CYCLE, int)
    for step in range(CYCLE):
        chosen[step] = np.argmax(shares / CYCLE * (step + 1) - counts)
        counts[chosen[step]] += 1
    return chosen
