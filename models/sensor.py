"""What an encoder knows about one sensor, and the one place where physical units become network units.

This file decides which tiles a sensor accepts and how they are normalised. It leaves to `stems.py` how normalised
pixels become tokens. Legend: B batch, C channel, Y X pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from models.batch import Tiles
from models.errors import InputError

GSD_TOLERANCE = 1e-3
"""Relative difference of pixel size above which tiles are refused."""


PER_BAND = ("wavelength_nm", "mean", "std", "bandwidth_nm", "frequency_ghz", "polarisation")
"""Facts of a sensor that come one for each band, in the order of `bands`."""


@dataclass(frozen=True)
class SensorSpec:
    """One sensor as saved in an encoder's config.json.

    wavelength_nm, bandwidth_nm, frequency_ghz and polarisation ("VH": sent V, received H) are per band, None where a band has
    none; the last three may be left out. mean and std are per band, in `unit`, over valid pixels of the train
    split. For heights, std is the spread about the mean *of each tile* and mean is not used: absolute elevation would
    otherwise dominate (see `normalise`).
    """

    name: str
    sensing: Literal["passive", "active"]
    quantity: str
    unit: str
    gsd_m: float
    bands: tuple[str, ...]
    wavelength_nm: tuple[float | None, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bandwidth_nm: tuple[float | None, ...] = ()
    frequency_ghz: tuple[float | None, ...] = ()
    polarisation: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        for field in ("bandwidth_nm", "frequency_ghz", "polarisation"):
            object.__setattr__(self, field, getattr(self, field) or (None,) * len(self.bands))
        for field in PER_BAND:
            found = len(getattr(self, field))
            if found != len(self.bands):
                raise InputError(f"sensor '{self.name}' has {found} {field}, expected {len(self.bands)}, one per band")
        if not self.name.isidentifier():
            raise InputError(f"sensor name '{self.name}' is not usable, expected letters, digits and underscores")
        if not self.bands or min(self.std) <= 0 or self.gsd_m <= 0:
            raise InputError(f"sensor '{self.name}' has {len(self.bands)} bands, std {self.std}, gsd {self.gsd_m} m, expected > 0")

    def select(self, bands: Sequence[str]) -> "SensorSpec":
        """Return this sensor with the named bands only, in the order given."""
        unknown = [band for band in bands if band not in self.bands]
        if unknown:
            raise InputError(f"sensor '{self.name}' has no band {', '.join(unknown)} (has {', '.join(self.bands)})")
        places = [self.bands.index(band) for band in bands]
        changes: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in places) for name in PER_BAND}
        return replace(self, bands=tuple(bands), **changes)

    @property
    def num_bands(self) -> int:
        return len(self.bands)

    def patch_px(self, token_size_m: float) -> int:
        """Return the side of one token of `token_size_m` metres in this sensor's pixels."""
        pixels = token_size_m / self.gsd_m
        if round(pixels) < 1 or abs(pixels - round(pixels)) > 1e-6:
            raise InputError(
                f"a token of {token_size_m:g} m is {pixels:g} pixels of sensor '{self.name}' ({self.gsd_m:g} m), "
                f"expected a whole number; choose token_size_m as a multiple of every sensor's pixel size"
            )
        return round(pixels)

    def check(self, tiles: Tiles, token_size_m: float) -> None:
        """Raise InputError unless `tiles` are what this sensor was trained on: bands, unit, pixel size, shape."""
        where = f"tiles of sensor '{self.name}' have"
        if tuple(tiles.bands) != self.bands:
            kind = "the same bands in another order" if set(tiles.bands) == set(self.bands) else "other bands"
            raise InputError(f"{where} bands {', '.join(tiles.bands)}, expected {', '.join(self.bands)} ({kind}); order them so")
        if tiles.unit != self.unit:
            raise InputError(f"{where} unit '{tiles.unit}', expected '{self.unit}'; convert the pixels before encoding")
        if abs(tiles.gsd_m / self.gsd_m - 1) > GSD_TOLERANCE:
            raise InputError(f"{where} pixels of {tiles.gsd_m:g} m, expected {self.gsd_m:g} m; resample the tiles")
        patch, shape = self.patch_px(token_size_m), tuple(tiles.pixels.shape)
        if len(shape) != 5 or shape[2] != self.num_bands or shape[3] % patch or shape[4] % patch:
            raise InputError(
                f"{where} pixels of shape {shape}, expected (B, T, {self.num_bands}, Y, X) with Y and X multiples of "
                f"{patch}; crop or pad (padding marked invalid)"
            )
        for name, expected in (("is_valid", (*shape[:2], *shape[3:])), ("is_present", shape[:2])):
            found = tuple(getattr(tiles, name).shape)
            if found != expected:
                raise InputError(f"{where} {name} of shape {found}, expected {expected}")

    def level(self, pixels_BCYX: Tensor, is_valid_BYX: Tensor, is_hidden_BYX: Tensor | None = None) -> Tensor:
        """Return (B, C, 1, 1): what is subtracted before scaling.

        The training mean; for heights each tile's own mean over its valid pixels, without hidden ones, so that what is
        hidden cannot leak through it (over all of a tile's valid pixels where every one of them is hidden).
        """
        if self.quantity != "height":
            return pixels_BCYX.new_tensor(self.mean).view(1, -1, 1, 1).expand(pixels_BCYX.shape[0], -1, 1, 1)
        is_known = is_valid_BYX
        if is_hidden_BYX is not None:
            is_visible = is_valid_BYX & ~is_hidden_BYX
            is_known = torch.where(is_visible.any(-1, keepdim=True).any(-2, keepdim=True), is_visible, is_valid_BYX)
        total = pixels_BCYX.masked_fill(~is_known[:, None], 0).sum((-2, -1), keepdim=True)
        return total / is_known.sum((-2, -1))[:, None, None, None].clamp_min(1)

    def normalise(self, pixels_BCYX: Tensor, is_valid_BYX: Tensor, level_BC11: Tensor) -> Tensor:
        """Return (pixels - level) / std in float32, 0 at invalid pixels whatever they held."""
        std = pixels_BCYX.new_tensor(self.std).view(-1, 1, 1)
        return (pixels_BCYX - level_BC11).div_(std).masked_fill_(~is_valid_BYX[:, None], 0)

    def denormalise(self, normalised_BCYX: Tensor, level_BC11: Tensor) -> Tensor:
        """Return network units in this sensor's `unit`, float32."""
        return normalised_BCYX.float() * torch.tensor(self.std, device=level_BC11.device).view(-1, 1, 1) + level_BC11
