"""What a model is given: tiles of several sensors over the same sites.

This file decides the layout of a batch. It leaves to `sensor.py` what a sensor's numbers mean and to the pipeline how
a batch comes to be. Legend: B batch, T time, C channel, Y X pixels.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """One sensor's part of a batch.

    pixels      (B, T, C, Y, X) float32 in `unit`; what stands at invalid pixels does not matter, NaN included
    is_valid    (B, T, Y, X) bool, True where the pixel was observed
    is_present  (B, T) bool, False where this site has no tile of this sensor
    time_days   (B, T) float64, days since 1970-01-01
    bands       names in the order of C
    """

    pixels: Tensor
    is_valid: Tensor
    is_present: Tensor
    time_days: Tensor
    bands: tuple[str, ...]
    unit: str
    gsd_m: float

    def to(self, device: torch.device | str) -> "Tiles":
        """Return the same tiles on `device`."""
        names = ("pixels", "is_valid", "is_present", "time_days")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def part(self, samples: slice) -> "Tiles":
        """Return some of the samples."""
        names = ("pixels", "is_valid", "is_present", "time_days")
        return replace(self, **{name: getattr(self, name)[samples] for name in names})

    @property
    def is_observed(self) -> Tensor:
        """(B, T, Y, X) bool: valid pixels of present tiles."""
        return self.is_valid & self.is_present[..., None, None]


@dataclass(frozen=True)
class Batch:
    """Tiles by sensor name, all over the same B sites.

    lonlat  (B, 2) float64 degrees, NaN where unknown
    index   number of steps of this sensor set that came before; the same on every rank
    crops   windows of the same sites, for objectives that want several; large ones first
    features  of a sensor the maps (B*T, y, x, D) that a teacher made of its tiles earlier, one a stage
    """

    tiles: dict[str, Tiles]
    lonlat: Tensor
    index: int = 0
    crops: tuple["Batch", ...] = ()
    features: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on `device`."""
        tiles = {name: part.to(device) for name, part in self.tiles.items()}
        crops = tuple(crop.to(device) for crop in self.crops)
        features = {name: tuple(part.to(device, non_blocking=True) for part in maps) for name, maps in self.features.items()}
        return replace(self, tiles=tiles, lonlat=self.lonlat.to(device, non_blocking=True), crops=crops, features=features)

    def __len__(self) -> int:
        return int(self.lonlat.shape[0])
