"""Stems and heads whose weights are generated from a description of each band, so that any sensor can be described to them.

Kernels are made on one grid of kernel_px x kernel_px over the ground of a token and resampled to the pixels that a sensor has
there. What describes a band, and the network from descriptions to codes, is the subclass's (`dofa.py`, `spectral.py`).
Legend as in `stem.py`; K width of a band's code, p pixels of a token, k pixels of the generated grid, W decoder's width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.sensor import SensorSpec
from models.stems.stem import Head, Stem

Codes = Callable[[SensorSpec], Tensor]


@dataclass(frozen=True)
class Kernels:
    """weight (C, k, k, D) and bias (D,), float32."""

    weight: Tensor
    bias: Tensor


class GeneratedStem(Stem):
    """A strided convolution with generated kernels; LayerNorm after it if has_norm."""

    def __init__(self, token_size_m: float, width: int, has_norm: bool, padding_px: int = 0) -> None:
        super().__init__()
        self.token_size_m, self.padding_px = token_size_m, padding_px
        self.norm = nn.LayerNorm(width) if has_norm else None

    def kernels(self, spec: SensorSpec) -> Kernels:
        """Return the weights for a sensor's bands in its own order; raise InputError for what cannot be described."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return next(chain(self.parameters(), self.buffers())).dtype  # a moving average has buffers alone

    def forward(self, pixels_BCYX: Tensor, spec: SensorSpec) -> Tensor:
        patch, kernels = spec.patch_px(self.token_size_m), self.kernels(spec)
        weight = resize(kernels.weight.permute(3, 0, 1, 2), patch) * (kernels.weight.shape[1] / patch) ** 2
        # A padding of as much as half a token would add a row.
        padding = self.padding_px if patch > 2 * self.padding_px else 0
        tokens = F.conv2d(pixels_BCYX.to(self.dtype), weight.to(self.dtype), kernels.bias.to(self.dtype), patch, padding)
        tokens_ByxD = tokens.permute(0, 2, 3, 1)
        return (tokens_ByxD if self.norm is None else self.norm(tokens_ByxD))[:, None]

    def check_unseen(self, spec: SensorSpec) -> None:
        with torch.no_grad():
            self.kernels(spec)


class GeneratedHead(Head):
    """A linear map with generated weights from a token to the pixels of each band."""

    def __init__(self, token_size_m: float) -> None:
        super().__init__()
        self.token_size_m = token_size_m

    def kernels(self, spec: SensorSpec) -> Kernels:
        """Return weight (C, k, k, W) and bias (C,) for a sensor's bands."""
        raise NotImplementedError

    def forward(self, tokens_BGND: Tensor, spec: SensorSpec) -> list[Tensor]:
        patch, kernels = spec.patch_px(self.token_size_m), self.kernels(spec)
        weight = resize(kernels.weight.permute(3, 0, 1, 2), patch)  # (W, C, p, p)
        tokens = tokens_BGND[:, 0]
        rows = weight.permute(2, 3, 1, 0).flatten(0, 2).to(tokens.dtype)
        return [F.linear(tokens, rows, kernels.bias.repeat(patch**2).to(tokens.dtype))]


def resize(weight_DCkk: Tensor, patch_px: int) -> Tensor:
    """Return kernels over the same ground on patch_px^2 pixels; a coarser grid takes means, a finer one interpolates."""
    size = weight_DCkk.shape[-1]
    if size == patch_px:
        return weight_DCkk
    if size > patch_px:
        return F.interpolate(weight_DCkk, (patch_px, patch_px), mode="area")
    return F.interpolate(weight_DCkk, (patch_px, patch_px), mode="bilinear", align_corners=False)
