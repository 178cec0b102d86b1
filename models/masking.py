"""Which part of the ground is hidden.

Pure functions of shape and generator; they know tokens, not sensors. Legend: B batch, Y X tokens.
"""

import math

import torch
from torch import Tensor


def block_mask(batch: int, grid: tuple[int, int], block: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Return (batch, Y, X) bool on the generator's device, True = hidden (SimMIM, Xie et al. 2022, arXiv 2111.09886).

    `grid` is cut into squares of `block` tokens (smaller at the far edges where it does not divide); in every sample
    exactly round(ratio * number of squares) of them are hidden, whole.
    """
    rows, columns = (math.ceil(size / block) for size in grid)
    num_hidden = round(ratio * rows * columns)
    draw = torch.rand(batch, rows * columns, generator=generator, device=generator.device)
    is_hidden = draw.argsort(1).argsort(1) < num_hidden
    return upsample(is_hidden.view(batch, rows, columns), block)[:, : grid[0], : grid[1]]


def upsample(mask_BYX: Tensor, factor: int) -> Tensor:
    """Return the mask on a grid `factor` times finer, each cell repeated."""
    return mask_BYX.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
