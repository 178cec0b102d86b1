"""Which tokens attend to which: the window layout of one attention layer.

This file decides order, padding, shift and mask; it holds no parameters. `swin.py` does the arithmetic.
Legend: N tokens of the padded grid, W windows, n tokens of one window.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowLayout:
    """Windows over one token grid, shifted or not.

    padded          (Y, X) of the grid after padding at the far edges to whole windows
    size            (y, x) of one window: the configured one, or the grid where that is smaller
    order_N         padded token that stands at each place when windows follow one another; None if nothing moves
    inverse_N       place of each padded token
    bias_index_nn   row of a (2 * window - 1)^2 table for each pair of tokens in a window
    mask_Wnn        0 where a pair may attend, -inf where a shift or padding brought strangers together; None if none
    """

    padded: tuple[int, int]
    size: tuple[int, int]
    order_N: Tensor | None
    inverse_N: Tensor | None
    bias_index_nn: Tensor
    mask_Wnn: Tensor | None

    @property
    def num_windows(self) -> int:
        return self.padded[0] * self.padded[1] // (self.size[0] * self.size[1])


@lru_cache(maxsize=256)
def window_layout(grid: tuple[int, int], window: int, is_shifted: bool, device: torch.device) -> WindowLayout:
    """Return the layout; a shift is half a window, and none along an axis that fits into one window."""
    # This cache outlives its caller, and a tensor made under inference_mode could never be used in training.
    with torch.inference_mode(False):
        size = (min(window, grid[0]), min(window, grid[1]))
        padded = (math.ceil(grid[0] / size[0]) * size[0], math.ceil(grid[1] / size[1]) * size[1])
        shift = tuple(s // 2 if is_shifted and g > s else 0 for s, g in zip(size, grid))
        tokens = torch.arange(padded[0] * padded[1]).view(padded).roll((-shift[0], -shift[1]), (0, 1))
        order_N = _partition(tokens, size).flatten()
        is_moved = not torch.equal(order_N, torch.arange(len(order_N)))
        mask_Wnn = _strangers(grid, padded, shift, size)
        return WindowLayout(
            padded,
            size,
            order_N.to(device) if is_moved else None,
            order_N.argsort().to(device) if is_moved else None,
            _bias_index(size, window).to(device),
            mask_Wnn.to(device) if bool(mask_Wnn.any()) else None,
        )


def _partition(values_YX: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (W, n): the grid's values window by window."""
    (rows, columns), (y, x) = values_YX.shape, size
    return values_YX.view(rows // y, y, columns // x, x).transpose(1, 2).reshape(-1, y * x)


def _strangers(grid: tuple[int, int], padded: tuple[int, int], shift: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Return (W, n, n) float32: -inf between tokens that are not neighbours on the ground, or where one is padding."""
    labels = []
    for g, p, d in zip(grid, padded, shift):
        source = (torch.arange(p) + d) % p
        wrapped = (torch.arange(p) >= p - d).long() if d else torch.zeros(p, dtype=torch.long)
        labels.append(torch.where(source < g, wrapped, 2))
    label_Wn = _partition(labels[0][:, None] * 3 + labels[1][None, :], size)
    is_stranger = label_Wn[:, :, None] != label_Wn[:, None, :]
    return torch.zeros(is_stranger.shape).masked_fill_(is_stranger, -math.inf)


def _bias_index(size: tuple[int, int], window: int) -> Tensor:
    """Return (n, n) int64: (dy, dx) between two tokens as a row of the relative position table."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    place = torch.stack([y.flatten(), x.flatten()], -1)
    offset = place[:, None] - place[None, :] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]
