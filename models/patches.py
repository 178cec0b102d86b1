"""Images as rows of patches, and patches scaled to their own mean and spread (He et al. 2022, arXiv 2111.06377)."""

import torch.nn.functional as F
from torch import Tensor

from models.errors import InputError

PATCH_EPS = 1e-6


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Return (B, N, patch_size^2 * C) of images (B, C, Y, X): patches row by row; in each, pixels row by row, bands last."""
    batch, bands, rows, columns = image.shape
    if rows % patch_size or columns % patch_size:
        raise InputError(f"an image of {rows} x {columns} pixels is not a whole number of patches of {patch_size}; crop or pad it")
    parts = image.view(batch, bands, rows // patch_size, patch_size, columns // patch_size, patch_size)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size**2 * bands)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Return the images (B, C, Y, X) of which `patchify` makes `patches`."""
    parts = patches.view(len(patches), *grid, patch_size, patch_size, -1)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * patch_size, grid[1] * patch_size)


def scale_patches(target: Tensor) -> Tensor:
    """Return each patch (..., D) with zero mean and unit variance (over D - 1, plus 1e-6)."""
    # By a layer norm, which divides by D where this divides by D - 1: torch's variance is slow on a CPU (2.13).
    share = (target.shape[-1] - 1) / target.shape[-1]
    return F.layer_norm(target, target.shape[-1:], eps=PATCH_EPS * share) * share**0.5


def unscale_patches(scaled: Tensor, target: Tensor) -> Tensor:
    """Return scaled patches in the mean and spread of `target`'s."""
    return scaled * (target.var(-1, keepdim=True) + PATCH_EPS).sqrt() + target.mean(-1, keepdim=True)
