"""What a vision transformer's tokens are told of their place, their bands, their time and their location.

This file decides how the encodings of `positions.py` are put together; each published system is one configuration.
Legend: B samples, T dates, G groups of bands, y x tokens, N = T * G * y * x, D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.errors import InputError
from models.positions import calendar, lonlat, prithvi_time, resample, satmae_time, sincos_1d, sincos_2d, sincos_3d

METADATA_SCALE = 0.1
"""First weight of time and location beside the place (Prithvi-EO-2.0)."""


@dataclass(frozen=True)
class TokenGrid:
    """Where tokens stand, in the order T, G, y, x.

    time_days (B, T), days since 1970-01-01, NaN unknown; lonlat_deg (B, 2), NaN unknown; scale (B,) or None: ground size of
    a token relative to the encoder's, where an image was resampled.
    """

    times: int
    groups: int
    rows: int
    columns: int
    time_days: Tensor
    lonlat_deg: Tensor
    scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.times, self.groups, self.rows, self.columns)

    @property
    def num_tokens(self) -> int:
        return self.times * self.groups * self.rows * self.columns


@dataclass(frozen=True)
class PositionConfig:
    """How the place in the image is encoded, and what else.

    plane          sincos (MAE), tubelet (also the date's number: Prithvi) or learned (tables of learned_grid^2 places and of
                   learned_groups groups, added: SpectralGPT; other grids by bicubic interpolation)
    group_width    channels of the width given to the number of the group of bands (SatMAE: 256 of 1024)
    time_width     channels given to year, month and hour (SatMAE: 384 of 1024)
    has_time, has_location  added with a learned weight (Prithvi-EO-2.0); of a share metadata_drop of samples in training
                   they are withheld
    """

    plane: Literal["sincos", "tubelet", "learned"] = "sincos"
    group_width: int = 0
    time_width: int = 0
    learned_grid: int = 12
    learned_groups: int = 4
    has_time: bool = False
    has_location: bool = False
    metadata_drop: float = 0.0

    def __post_init__(self) -> None:
        if (self.group_width and self.group_width % 2) or self.time_width % 6:
            raise InputError(
                f"positions have group_width {self.group_width} and time_width {self.time_width}, expected multiples of 2 and 6"
            )
        if not 0 <= self.metadata_drop < 1:
            raise InputError(f"positions have metadata_drop {self.metadata_drop}, expected [0, 1)")


class PositionEmbedding(nn.Module):
    """Encodings to be added to tokens of one width."""

    def __init__(self, config: PositionConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.plane_width = width - config.group_width - config.time_width
        if self.plane_width < 4:
            raise InputError(f"positions leave {self.plane_width} of {width} channels to the place, expected at least 4")
        if config.plane == "learned":
            self.places = nn.Parameter(torch.empty(config.learned_grid**2, self.plane_width))
            self.groups = nn.Parameter(torch.empty(config.learned_groups, self.plane_width))
        # Called weights so that they begin at 1; what they are multiplied with begins at METADATA_SCALE.
        self.time = _Weight() if config.has_time else None
        self.location = _Weight() if config.has_location else None

    def forward(self, grid: TokenGrid, generator: torch.Generator | None = None) -> Tensor:
        """Return (B or 1, N, D) float32. The generator decides whose metadata are withheld in training."""
        device = grid.time_days.device
        place = self._plane(grid, device)
        parts = [place.expand(-1, grid.times, grid.groups, grid.rows, grid.columns, -1)]
        if width := self.config.group_width:
            number = sincos_1d(width, torch.arange(grid.groups, device=device))
            parts.append(number.view(1, 1, grid.groups, 1, 1, width))
        if width := self.config.time_width:
            year, month, _, hour = calendar(grid.time_days)
            parts.append(satmae_time(width, year, month, hour)[:, :, None, None, None])
        batch = grid.time_days.shape[0] if self.config.time_width else place.shape[0]
        shape = (batch, *grid.shape)
        embedded = torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)
        return (embedded + self._metadata(grid, generator)).flatten(1, 4)

    def _plane(self, grid: TokenGrid, device: torch.device) -> Tensor:
        """Return (B or 1, T or 1, G or 1, y, x, width of the plane)."""
        size, width = (grid.rows, grid.columns), self.plane_width
        if self.config.plane == "tubelet":
            return sincos_3d(width, grid.times, *size).to(device).view(1, grid.times, 1, *size, width)
        if self.config.plane == "learned":
            side, known = self.config.learned_grid, self.config.learned_groups
            if grid.groups > known:
                raise InputError(
                    f"a sensor has {grid.groups} groups of bands, positions have learned {known}; raise learned_groups"
                )
            places = self.places.float() if size == (side, side) else resample(self.places.float(), (side, side), size)
            return (places.view(1, *size, width) + self.groups[: grid.groups, None, None].float())[None, None]
        scales = [1.0] if grid.scale is None else grid.scale.tolist()
        planes = torch.stack([sincos_2d(width, *size, scale) for scale in scales]).to(device)
        return planes.view(-1, 1, 1, *size, width)

    def _metadata(self, grid: TokenGrid, generator: torch.Generator | None) -> Tensor:
        """Return (B or 1, T or 1, 1, 1, 1, D) of time and location; nothing where they are unknown or withheld."""
        total = torch.zeros(1, 1, self.width, device=grid.time_days.device)
        if self.time is not None:
            year, _, day, _ = calendar(grid.time_days)
            is_known = grid.time_days.isfinite()[..., None]
            total = total + self.time(prithvi_time(self.width, year, day) * is_known * self._kept(grid, generator))
        if self.location is not None:
            total = total + self.location(lonlat(self.width, grid.lonlat_deg)[:, None] * self._kept(grid, generator))
        return total[:, :, None, None, None]

    def _kept(self, grid: TokenGrid, generator: torch.Generator | None) -> Tensor:
        """Return (B, 1, 1) float32, 0 for samples whose metadata are withheld."""
        batch, drop = grid.time_days.shape[0], self.config.metadata_drop if self.training else 0.0
        if not drop:
            return torch.ones(batch, 1, 1, device=grid.time_days.device)
        if generator is None:
            raise ValueError("metadata_drop > 0 in training needs a generator")
        draw = torch.rand(batch, 1, 1, generator=generator, device=generator.device)
        return (draw >= drop).float().to(grid.time_days.device)


class _Weight(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (METADATA_SCALE * self.weight.float())
