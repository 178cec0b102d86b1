"""A stem of its own for each sensor: what a band measures is learned with its weights, so the sensors are fixed.

Legend as in `stem.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.sensor import SensorSpec
from models.stems.stem import Head, Stem, StemConfig


@dataclass(frozen=True)
class SensorStemConfig(StemConfig):
    """Strided convolution of one patch per token (Dosovitskiy et al. 2021), then LayerNorm if has_norm (Liu et al. 2021)."""

    kind: str = "sensor"
    has_norm: bool = True
    has_tokens: bool = False
    """Also a learned token per sensor, for decoders of several sensors."""

    def projection(self, num_bands: int, patch_px: int, width: int) -> nn.Module:
        """Return what makes tokens (B, y, x, D) of pixels (B, C, Y, X)."""
        return PatchProjection(num_bands, patch_px, width, self.has_norm)

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "SensorStem":
        return SensorStem(self, sensors, token_size_m, width)

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "SensorHead":
        return SensorHead(self, sensors, token_size_m, width)


class PatchProjection(nn.Module):
    """One linear map per patch, and a LayerNorm if asked for."""

    def __init__(self, num_bands: int, patch_px: int, width: int, has_norm: bool) -> None:
        super().__init__()
        self.project = PatchConvolution(num_bands, width, kernel_size=patch_px, stride=patch_px)
        self.norm = nn.LayerNorm(width) if has_norm else None

    def forward(self, pixels_BCYX: Tensor, index_BK: Tensor | None = None) -> Tensor:
        """Return tokens (B, y, x, D), or of the y * x tokens of each tile those at `index_BK`, (B, K, D)."""
        tokens = self.project(pixels_BCYX, index_BK)
        return tokens if self.norm is None else self.norm(tokens)


class PatchConvolution(nn.Conv2d):
    """Looks only at the patches that are asked for: of a masked tile a convolution would make tokens that nobody reads."""

    def forward(self, pixels_BCYX: Tensor, index_BK: Tensor | None = None) -> Tensor:
        """Arguments and result as of `PatchProjection`."""
        if index_BK is None:
            return super().forward(pixels_BCYX.to(self.weight.dtype)).permute(0, 2, 3, 1)
        side = self.kernel_size[0]
        patches = pixels_BCYX.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        tile_B1, columns = torch.arange(len(index_BK), device=index_BK.device)[:, None], patches.shape[2]
        chosen_BKCYX = patches[tile_B1, index_BK // columns, index_BK % columns]
        return F.linear(chosen_BKCYX.flatten(2).to(self.weight.dtype), self.weight.flatten(1), self.bias)


class SensorStem(Stem):
    """Groups of bands of named sensors, each with a projection of its own."""

    def __init__(self, config: SensorStemConfig, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> None:
        super().__init__()
        self.config = config
        self.projections = nn.ModuleDict(
            {
                spec.name: nn.ModuleList(
                    config.projection(len(bands), spec.patch_px(token_size_m), width) for bands in config.groups(spec)
                )
                for spec in sensors
            }
        )

    def forward(self, pixels_BCYX: Tensor, spec: SensorSpec) -> Tensor:
        parts = of_sensor(self.projections, spec)
        groups = self.config.groups(spec)
        if len(groups) == 1 and len(groups[0]) == spec.num_bands:
            return parts[0](pixels_BCYX)[:, None]
        return torch.stack([part(pixels_BCYX[:, list(bands)]) for part, bands in zip(parts, groups)], 1)

    def some(self, pixels_BCYX: Tensor, spec: SensorSpec, index_BK: Tensor) -> Tensor:
        parts, (bands, *others) = of_sensor(self.projections, spec), self.config.groups(spec)
        if others or len(bands) < spec.num_bands or not isinstance(parts[0], PatchProjection):
            return super().some(pixels_BCYX, spec, index_BK)
        return parts[0](pixels_BCYX, index_BK)

    def check_unseen(self, spec: SensorSpec) -> None:
        refuse_unseen(self.projections, spec)


class SensorHead(Head):
    """One linear map per sensor and group of bands."""

    def __init__(self, config: SensorStemConfig, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {
                spec.name: nn.ModuleList(nn.Linear(width, spec.patch_px(token_size_m) ** 2 * len(b)) for b in config.groups(spec))
                for spec in sensors
            }
        )

        self.tokens = nn.ParameterDict({s.name: nn.Parameter(torch.empty(width)) for s in sensors if config.has_tokens})

    def token(self, spec: SensorSpec) -> Tensor:
        if spec.name not in self.tokens:
            raise InputError(f"sensor '{spec.name}' has no token for a decoder of several sensors; set the stem's has_tokens")
        return self.tokens[spec.name]

    def forward(self, tokens_BGND: Tensor, spec: SensorSpec) -> list[Tensor]:
        return [part(tokens_BGND[:, group]) for group, part in enumerate(of_sensor(self.projections, spec))]


def of_sensor(parts: nn.ModuleDict, spec: SensorSpec) -> nn.ModuleList:
    """Return the parts of one sensor; a sensor without is one that the encoder was not trained on."""
    if spec.name not in parts:
        raise InputError(
            f"sensor '{spec.name}' has no stem in this encoder (has {', '.join(parts)}), and weights of a stem per sensor "
            f"cannot be had from a description; use an encoder with a 'spectral' stem for unseen sensors"
        )
    return parts[spec.name]  # type: ignore[return-value]


def refuse_unseen(parts: nn.ModuleDict, spec: SensorSpec) -> None:
    """Raise InputError: weights that belong to a sensor serve its own bands in their own order only."""
    of_sensor(parts, spec)
    raise InputError(f"the stem of sensor '{spec.name}' serves the bands it was trained on; use a 'spectral' stem for other ones")
