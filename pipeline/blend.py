"""How a large image is covered by overlapping windows, and how what they say of it is put together.

Pure geometry in cells, the pixels of what comes out. A cell's value is the weighted mean of all windows that cover it. Weights
fall in a straight line towards a window's sides, so a value never jumps where a window ends; sides on the image's border keep
theirs. The image is worked on in blocks: a block needs nobody else's windows, and gives the same whichever was done before.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.errors import InputError


@dataclass(frozen=True)
class Span:
    """Cells [start, stop) along both axes, (y, x)."""

    start: tuple[int, int]
    stop: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.stop[0] - self.start[0], self.stop[1] - self.start[1])

    def within(self, outer: "Span") -> tuple[slice, slice]:
        """Return where this lies in an array that holds `outer`, cut to it."""
        lows = [max(a, o) - o for a, o in zip(self.start, outer.start)]
        highs = [min(b, p) - o for b, p, o in zip(self.stop, outer.stop, outer.start)]
        return slice(lows[0], highs[0]), slice(lows[1], highs[1])


@dataclass(frozen=True)
class Blend:
    """Windows of `window` cells over an image of `shape` cells, neighbours sharing `overlap` cells.

    The outer `margin` cells of a window's inner sides are context: seen, but given no weight.
    """

    shape: tuple[int, int]
    window: int
    overlap: int
    margin: int = 0

    def __post_init__(self) -> None:
        if not (0 <= 2 * self.margin <= self.overlap < self.window):
            raise InputError(
                f"windows of {self.window} cells overlap by {self.overlap} with a margin of {self.margin}; expected an overlap "
                f"of at least two margins and less than a window"
            )
        if min(self.shape) < self.window:
            raise InputError(f"an image of {self.shape} cells is smaller than a window of {self.window}; use smaller windows")

    def starts(self, axis: int) -> list[int]:
        """Return where windows begin; the last one ends with the image."""
        last = self.shape[axis] - self.window
        return [*range(0, last, self.window - self.overlap), last]

    def weight(self, axis: int, start: int) -> np.ndarray:
        """Return (window,) float32 of the window that begins at `start`."""
        ramp = self.overlap - 2 * self.margin
        inner = np.clip((np.arange(self.window) - self.margin + 1) / (ramp + 1), 0, 1).astype(np.float32)
        one = np.ones(self.window, np.float32)
        low = one if start == 0 else inner
        high = one if start + self.window == self.shape[axis] else inner[::-1]
        return np.minimum(low, high)

    def windows(self, block: Span) -> list[Span]:
        """Return the windows that have a part of `block`, row by row."""
        rows, columns = ([s for s in self.starts(a) if s < block.stop[a] and s + self.window > block.start[a]] for a in (0, 1))
        return [Span((y, x), (y + self.window, x + self.window)) for y in rows for x in columns]

    def blocks(self, size: int) -> Iterator[Span]:
        """Yield blocks of `size` x `size` cells that cover the image once."""
        for y in range(0, self.shape[0], size):
            for x in range(0, self.shape[1], size):
                yield Span((y, x), (min(y + size, self.shape[0]), min(x + size, self.shape[1])))

    def around(self, block: Span) -> Span:
        """Return the cells of all windows of `block`."""
        windows = self.windows(block)
        return Span(
            (min(w.start[0] for w in windows), min(w.start[1] for w in windows)),
            (max(w.stop[0] for w in windows), max(w.stop[1] for w in windows)),
        )

    def widest(self, size: int) -> int:
        """Return the largest side of `around` for blocks of `size`, in cells."""
        return min(size + 2 * (self.window - 1), max(self.shape))


class BlendedBlock:
    """A block's values while its windows come in."""

    def __init__(self, blend: Blend, block: Span, width: int):
        self._blend, self.block = blend, block
        self._sum = np.zeros((*block.shape, width), np.float32)
        self._weight = np.zeros(block.shape, np.float32)

    def add(self, window: Span, values: np.ndarray, is_valid: np.ndarray) -> None:
        """Add what a window says: values (y, x, D) float32 where is_valid (y, x)."""
        weight = self._blend.weight(0, window.start[0])[:, None] * self._blend.weight(1, window.start[1]) * is_valid
        there, here = window.within(self.block), self.block.within(window)
        self._sum[there] += values[here] * weight[here][..., None]
        self._weight[there] += weight[here]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return values (y, x, D), 0 where nothing is known, and where something is (y, x)."""
        is_valid = self._weight > 0
        return self._sum / np.where(is_valid, self._weight, 1)[..., None], is_valid
