"""From a last map, the encoder's or a decoder's, back to one sensor's own pixels.

This file decides the heads of masked image modelling. What is compared with what is decided by the objective.
Legend: B batch, C channel, Y X cells of the last map, y x pixels, D width, H width of a head.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.layers import SteadyConv2d
from models.sensor import SensorSpec
from models.vit import NORM_EPS


class PixelDecoder(nn.Module):
    """One linear map per cell, then pixel shuffle: SimMIM (Xie et al. 2022, arXiv 2111.09886), GFM (arXiv 2302.04476).

    stride_px is the side of one cell in pixels of this sensor, so every sensor's output covers the same ground.
    """

    def __init__(self, width: int, num_bands: int, stride_px: int) -> None:
        super().__init__()
        self.stride_px = stride_px
        self.project = nn.Linear(width, num_bands * stride_px**2)

    def forward(self, map_BYXD: Tensor) -> Tensor:
        """Return normalised pixels (B, C, Y * stride_px, X * stride_px) in the map's dtype."""
        return F.pixel_shuffle(self.project(map_BYXD).permute(0, 3, 1, 2), self.stride_px)


class LaplacianPyramid(nn.Module):
    """A low-frequency image and a high-frequency residual twice as fine (Scale-MAE, Reed et al. 2023, arXiv 2212.14532).

    Deconvolutions make maps twice and four times as fine as the tokens; a head of its own leads from each to pixels.
    """

    def __init__(self, width: int, hidden: int, depth: int, sensors: Sequence[SensorSpec], token_size_m: float) -> None:
        super().__init__()
        self.twice = _Deconvolution(width, width, 2)
        self.four_times = nn.Sequential(
            _Deconvolution(width, width, 2), _ChannelNorm(width), nn.GELU(), _Deconvolution(width, width, 2)
        )
        self.low = LaplacianHead(width, hidden, depth, sensors, token_size_m)
        self.high = LaplacianHead(width, hidden, depth, sensors, token_size_m)

    def forward(self, map_BYXD: Tensor, sensor: str) -> tuple[Tensor, Tensor]:
        """Return low (B, C, Y * patch, X * patch) and high (B, C, Y * 2 patch, X * 2 patch) in the map's dtype."""
        map_BDYX = map_BYXD.permute(0, 3, 1, 2)
        return self.low(self.twice(map_BDYX), sensor), self.high(self.four_times(map_BDYX), sensor)


class LaplacianHead(nn.Module):
    """Laplacian blocks that all sensors share, then half a patch of pixels for each cell by layers of each sensor's own."""

    def __init__(self, width: int, hidden: int, depth: int, sensors: Sequence[SensorSpec], token_size_m: float) -> None:
        super().__init__()
        if hidden % 4:
            raise InputError(f"a Laplacian head has width {hidden}, expected a multiple of 4")
        self.enter = SteadyConv2d(width, hidden, 1)
        self.blocks = nn.Sequential(*(LaplacianBlock(hidden) for _ in range(depth)))
        self.leave = nn.ModuleDict({spec.name: _to_pixels(hidden, spec, token_size_m) for spec in sensors})

    def forward(self, map_BDYX: Tensor, sensor: str) -> Tensor:
        return self.leave[sensor](self.blocks(self.enter(map_BDYX)))


class LaplacianBlock(nn.Module):
    """What a 3 x 3 convolution of pairs of channels finds, added to a linear map of the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.find = nn.Sequential(
            nn.GELU(),
            SteadyConv2d(width, width // 2, 3, padding=1, groups=width // 2),
            nn.GELU(),
            SteadyConv2d(width // 2, width, 1),
        )
        self.keep = SteadyConv2d(width, width, 1)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        return self.find(x_BDYX) + self.keep(x_BDYX)


class _Deconvolution(nn.ConvTranspose2d):
    """Each value becomes a square of `factor` times `factor` values; begins as `SteadyConv2d` does."""

    def __init__(self, width: int, out: int, factor: int) -> None:
        super().__init__(width, out, kernel_size=factor, stride=factor)

    def draw(self, generator: torch.Generator | None) -> None:
        bound = (3 / self.in_channels) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, D, Y, X)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, NORM_EPS)

    def forward(self, x_BDYX: Tensor) -> Tensor:
        return super().forward(x_BDYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _to_pixels(hidden: int, spec: SensorSpec, token_size_m: float) -> nn.Sequential:
    """Return layers from H channels to the bands of `spec`, half a patch finer: for one of 16 px by 4, then by 2."""
    patch = spec.patch_px(token_size_m)
    if patch % 2:
        raise InputError(
            f"a token of {token_size_m:g} m is {patch} pixels of sensor '{spec.name}', expected an even number for a pyramid"
        )
    half, last = hidden // 2, 2 if patch % 4 == 0 else 1
    return nn.Sequential(
        _ChannelNorm(hidden),
        _Deconvolution(hidden, half, patch // 2 // last),
        nn.GELU(),
        SteadyConv2d(half, half // 2, 3, padding=1, groups=half // 2),
        nn.GELU(),
        SteadyConv2d(half // 2, half, 1),
        nn.GELU(),
        _Deconvolution(half, spec.num_bands, last),
    )
