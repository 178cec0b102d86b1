"""From normalised pixels to tokens, one stem per sensor, all on the same ground grid.

This file decides how a patch becomes a token and which patches are not seen. A token has one size in metres whatever
the sensor, so a mask over tokens is a mask over ground. It leaves normalisation to `sensor.py`.
Legend: B batch, C channel, Y X pixels, y x tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SensorStem(nn.Module):
    """Strided convolution of one patch per token, then LayerNorm (Liu et al. 2021, arXiv 2103.14030)."""

    def __init__(self, num_bands: int, patch_px: int, width: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.project = nn.Conv2d(num_bands, width, kernel_size=patch_px, stride=patch_px)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """Return tokens (B, y, x, D) in the parameters' dtype."""
        tokens_BDyx = self.project(pixels_BCYX.to(self.project.weight.dtype))
        return self.norm(tokens_BDyx.permute(0, 2, 3, 1))


class MaskToken(nn.Module):
    """The learned token that stands for ground that is hidden, invalid or absent; one for all sensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))

    def forward(self, tokens_ByxD: Tensor, is_hidden_Byx: Tensor) -> Tensor:
        """Return the tokens with hidden ones replaced."""
        return torch.where(is_hidden_Byx[..., None], self.token, tokens_ByxD)


def is_mostly_invalid(is_valid_BYX: Tensor, patch_px: int) -> Tensor:
    """Return (B, y, x) bool, True where more than half of a patch's pixels are invalid."""
    return F.avg_pool2d(is_valid_BYX.float()[:, None], patch_px)[:, 0] < 0.5
