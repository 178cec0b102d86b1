"""Which tokens or pixels are hidden.

Pure functions of shape, validity and generator; they know tokens, not sensors. In every mask True means hidden. What is
not valid (nothing was observed there) is always hidden, and the share that is hidden counts valid tokens only: of V valid
ones exactly round(ratio * V) are. Objectives score what is hidden and valid.
Legend: B batch, N tokens, G groups of bands or frames, S sensors, Y X tokens or pixels.
"""

import math

import torch
from torch import Tensor


def random_tokens(batch: int, num_tokens: int, ratio: float, generator: torch.Generator, is_valid: Tensor | None = None) -> Tensor:
    """Return (batch, num_tokens) bool (MAE, He et al. 2022, arXiv 2111.06377); is_valid (batch, num_tokens)."""
    device = generator.device
    valid = torch.ones(batch, num_tokens, dtype=torch.bool, device=device) if is_valid is None else is_valid.to(device)
    draw = torch.rand(batch, num_tokens, generator=generator, device=device).masked_fill(~valid, 2.0)
    num_hidden = (valid.sum(1, keepdim=True) * ratio).round()
    return (draw.argsort(1).argsort(1) < num_hidden) | ~valid


def blocks(
    batch: int, grid: tuple[int, int], block: int, ratio: float, generator: torch.Generator, is_valid: Tensor | None = None
) -> Tensor:
    """Return (batch, Y, X) bool: whole squares of `block` tokens (SimMIM, Xie et al. 2022, arXiv 2111.09886).

    `grid` is cut into squares (smaller at the far edges where it does not divide); the ratio counts the squares that hold
    any valid token of is_valid (batch, Y, X).
    """
    rows, columns = (math.ceil(size / block) for size in grid)
    valid_square = None
    if is_valid is not None:
        padded = torch.nn.functional.pad(is_valid, (0, columns * block - grid[1], 0, rows * block - grid[0]))
        valid_square = padded.unflatten(2, (columns, block)).unflatten(1, (rows, block)).any(-1).any(2).flatten(1)
    hidden = random_tokens(batch, rows * columns, ratio, generator, valid_square).view(batch, rows, columns)
    hidden = upsample(hidden, block)[:, : grid[0], : grid[1]]
    return hidden if is_valid is None else hidden | ~is_valid.to(hidden.device)


def independent_groups(
    batch: int, groups: int, num_tokens: int, ratio: float, generator: torch.Generator, is_valid: Tensor | None = None
) -> Tensor:
    """Return (batch, groups, num_tokens) bool, drawn over all groups' tokens at once (SatMAE, arXiv 2207.08051)."""
    flat = None if is_valid is None else is_valid.flatten(1)
    return random_tokens(batch, groups * num_tokens, ratio, generator, flat).view(batch, groups, num_tokens)


def consistent_groups(
    batch: int, groups: int, num_tokens: int, ratio: float, generator: torch.Generator, is_valid: Tensor | None = None
) -> Tensor:
    """Return (batch, groups, num_tokens) bool, the same places in every group; a place is valid if any group is there."""
    places = random_tokens(batch, num_tokens, ratio, generator, None if is_valid is None else is_valid.any(1))
    hidden = places[:, None].expand(batch, groups, num_tokens)
    return hidden.clone() if is_valid is None else hidden | ~is_valid.to(hidden.device)


def cubes(
    batch: int,
    shape: tuple[int, int, int],
    cube: tuple[int, int, int],
    ratio: float,
    generator: torch.Generator,
    is_valid: Tensor | None = None,
) -> Tensor:
    """Return (batch, *shape) bool over (groups, Y, X) tokens: whole cubes of `cube` tokens are hidden (S2MAE, CVPR 2024).

    With cube (1, 1, 1) it is `independent_groups`. Where `cube` does not divide `shape` the far cubes are smaller; the
    ratio counts cubes that hold any valid token.
    """
    counts = [math.ceil(size / side) for size, side in zip(shape, cube)]
    valid_cube = None
    if is_valid is not None:
        gaps = [count * side - size for count, side, size in zip(counts, cube, shape)]
        padded = torch.nn.functional.pad(is_valid, (0, gaps[2], 0, gaps[1], 0, gaps[0]))
        parted = padded.view(batch, counts[0], cube[0], counts[1], cube[1], counts[2], cube[2])
        valid_cube = parted.any(6).any(4).any(2).flatten(1)
    hidden = random_tokens(batch, math.prod(counts), ratio, generator, valid_cube).view(batch, *counts)
    for dim, (side, size) in enumerate(zip(cube, shape), start=1):
        hidden = hidden.repeat_interleave(side, dim).narrow(dim, 0, size)
    return hidden if is_valid is None else hidden | ~is_valid.to(hidden.device)


def partial_pixels(
    batch: int,
    size: tuple[int, int],
    block: int,
    block_ratio: float,
    pixel_ratio: float,
    generator: torch.Generator,
    is_valid: Tensor | None = None,
) -> Tensor:
    """Return (batch, Y, X) bool over pixels: in ceil(block_ratio * blocks) squares of `block` pixels, ceil(pixel_ratio *
    block^2) pixels each are hidden (PIMask of RingMo, Sun et al. 2022), so that small objects are seldom hidden whole.

    RingMo counts with ceil; so does this. Invalid pixels are hidden beside them.
    """
    rows, columns = (math.ceil(n / block) for n in size)
    device, num_blocks, area = generator.device, rows * columns, block * block
    lots = torch.rand(batch, num_blocks, generator=generator, device=device).argsort(1).argsort(1)
    chosen = lots < math.ceil(block_ratio * num_blocks - 1e-9)
    inside = torch.rand(batch, num_blocks, area, generator=generator, device=device).argsort(2).argsort(2)
    hidden = (inside < math.ceil(pixel_ratio * area - 1e-9)) & chosen[..., None]
    image = hidden.view(batch, rows, columns, block, block).transpose(2, 3).reshape(batch, rows * block, columns * block)
    image = image[:, : size[0], : size[1]]
    return image.clone() if is_valid is None else image | ~is_valid.to(device)


def cross_sensor(is_present: Tensor, generator: torch.Generator, probability: float = 1.0) -> Tensor:
    """Return (B, S) bool: with `probability` one present sensor of a sample is hidden whole (msGFM, arXiv 2404.01260).

    A sample keeps at least one sensor: where only one is present none is hidden. Absent ones are hidden as ever.
    """
    present = is_present.to(generator.device)
    lots = torch.rand(present.shape, generator=generator, device=generator.device).masked_fill(~present, -1.0)
    is_drawn = torch.rand(len(present), generator=generator, device=generator.device) < probability
    may_hide = is_drawn & (present.sum(1) > 1)
    chosen = torch.nn.functional.one_hot(lots.argmax(1), present.shape[1]).bool()
    return (chosen & may_hide[:, None]) | ~present


def upsample(mask_BYX: Tensor, factor: int) -> Tensor:
    """Return the mask on a grid `factor` times finer, each cell repeated."""
    return mask_BYX.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
