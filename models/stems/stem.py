"""What a stem is: pixels of one sensor to tokens on the ground grid, and the head that leads back to pixels.

A token has one size in metres whatever the sensor, so a mask over tokens is a mask over ground. A stem may make several
tokens of one place, one for each group of bands. A new stem is a file here with a subclass of `StemConfig` of another
`kind`; it leaves normalisation to `sensor.py`.
Legend: B tiles, C channel, Y X pixels, G groups of bands, y x tokens, N = y * x, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.gather import take
from models.sensor import SensorSpec


class Stem(nn.Module):
    """Pixels to tokens."""

    def forward(self, pixels_BCYX: Tensor, spec: SensorSpec) -> Tensor:
        """Return tokens (B, G, y, x, D) of normalised pixels, in the parameters' dtype."""
        raise NotImplementedError

    def some(self, pixels_BCYX: Tensor, spec: SensorSpec, index_BK: Tensor) -> Tensor:
        """Return of each tile's G * y * x tokens those at `index_BK`, (B, K, D)."""
        return take(self(pixels_BCYX, spec).flatten(1, 3), index_BK)

    def check_unseen(self, spec: SensorSpec) -> None:
        """Raise InputError, saying why, if this stem has no weights for a sensor that it was not built for."""
        raise NotImplementedError


class Head(nn.Module):
    """Tokens to pixels."""

    def forward(self, tokens_BGND: Tensor, spec: SensorSpec) -> list[Tensor]:
        """Return for each group patches (B, N, patch^2 * bands): pixels row by row, bands last, as `patchify` orders them."""
        raise NotImplementedError

    def token(self, spec: SensorSpec) -> Tensor:
        """Return (D,): what tells a decoder of several sensors which one is to be predicted."""
        raise NotImplementedError


@dataclass(frozen=True)
class StemConfig:
    """Which stem; subclasses build it for the sensors of an encoder, whose tokens have `token_size_m`."""

    kind: str = ""

    def groups(self, spec: SensorSpec) -> tuple[tuple[int, ...], ...]:
        """Return the bands, by place in the sensor, of each token of a place."""
        return (tuple(range(spec.num_bands)),)

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> Stem:
        raise NotImplementedError

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> Head:
        raise NotImplementedError


class MaskToken(nn.Module):
    """The learned token that stands for ground that is hidden, invalid or absent; one for all sensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(width))

    def forward(self, tokens: Tensor, is_hidden: Tensor) -> Tensor:
        """Return the tokens (..., D) with hidden ones (...) replaced."""
        return torch.where(is_hidden[..., None], self.token, tokens)


def is_mostly_invalid(is_valid_BYX: Tensor, patch_px: int) -> Tensor:
    """Return (B, y, x) bool, True where more than half of a patch's pixels are invalid."""
    return F.avg_pool2d(is_valid_BYX.float()[:, None], patch_px)[:, 0] < 0.5
