"""Where, when and how fine: positions as fixed sines and cosines.

Pure functions, computed in float64 and returned in float32. Every encoding of one number is `dim / 2` sines, then as many
cosines, of the number times frequencies from 1 down to 1 / 10000 (Vaswani et al. 2017).
Legend: N tokens, D width, B samples, T frames.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.errors import InputError

SATMAE_TIME = (("year", 2002.0), ("month", 1.0), ("hour", 0.0))
"""What SatMAE encodes of a time, and what it counts each from."""


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Return (..., dim) float32 for positions of any shape."""
    if dim % 2 or dim < 2:
        raise InputError(f"an encoding of one number has dim {dim}, expected an even number of at least 2")
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device=positions.device) / (dim / 2))
    angles = positions.double()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).float()


def sincos_2d(dim: int, rows: int, cols: int, gsd_scale: float = 1.0) -> Tensor:
    """Return (rows * cols, dim), row by row: the first half of `dim` encodes the column, the second the row, as in MAE.

    `gsd_scale` multiplies positions: the image's GSD over a reference GSD makes them ground distances (Scale-MAE, Reed et
    al. 2023, arXiv 2212.14532).
    """
    if dim % 4:
        raise InputError(f"a position in two dimensions has dim {dim}, expected a multiple of 4")
    y, x = torch.meshgrid(torch.arange(rows) * gsd_scale, torch.arange(cols) * gsd_scale, indexing="ij")
    return torch.cat([sincos_1d(dim // 2, x.flatten()), sincos_1d(dim // 2, y.flatten())], -1)


def sincos_3d(dim: int, frames: int, rows: int, cols: int) -> Tensor:
    """Return (frames * rows * cols, dim): column in 6/16 of `dim`, row in 6/16, frame in 4/16, as Prithvi has them."""
    if dim % 16:
        raise InputError(f"a position in three dimensions has dim {dim}, expected a multiple of 16")
    t, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (frames, rows, cols)), indexing="ij")
    widths = (dim // 16 * 6, dim // 16 * 6, dim // 16 * 4)
    return torch.cat([sincos_1d(width, axis.flatten()) for width, axis in zip(widths, (x, y, t))], -1)


def satmae_time(dim: int, years: Tensor, months: Tensor, hours: Tensor) -> Tensor:
    """Return (..., dim): year - 2002, month - 1 and hour in a third of `dim` each (SatMAE, arXiv 2207.08051).

    months count from 1; SatMAE puts the result beside a spatial encoding inside the token's width.
    """
    parts = (years - SATMAE_TIME[0][1], months - SATMAE_TIME[1][1], hours - SATMAE_TIME[2][1])
    return torch.cat([sincos_1d(dim // 3, part) for part in parts], -1)


def prithvi_time(dim: int, years: Tensor, days_of_year: Tensor) -> Tensor:
    """Return (..., dim): year in one half, day of the year (from 0) in the other (Prithvi-EO-2.0, arXiv 2412.02732)."""
    return torch.cat([sincos_1d(dim // 2, years), sincos_1d(dim // 2, days_of_year)], -1)


def lonlat(dim: int, lonlat_deg: Tensor) -> Tensor:
    """Return (..., dim): latitude in one half, longitude in the other, degrees (Prithvi-EO-2.0); 0 where unknown (NaN)."""
    is_known = lonlat_deg.isfinite().all(-1, keepdim=True)
    lon, lat = lonlat_deg.nan_to_num(0.0).unbind(-1)
    return torch.cat([sincos_1d(dim // 2, lat), sincos_1d(dim // 2, lon)], -1) * is_known


def calendar(time_days: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return year, month (from 1), day of the year (from 0) and hour of days since 1970-01-01; 1970-01-01 where NaN.

    Civil calendar by counting days from 1 March of year 0 in eras of 400 years.
    """
    days = time_days.double().nan_to_num(0.0)
    hours = (days - days.floor()) * 24
    shifted = days.floor().long() + 719_468
    era = shifted.div(146_097, rounding_mode="floor")
    day = shifted - era * 146_097
    year = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    of_year = day - (365 * year + year // 4 - year // 100)
    march = (5 * of_year + 2) // 153
    month = torch.where(march < 10, march + 3, march - 9)
    civil = year + era * 400 + (month <= 2)
    is_leap = (civil % 4 == 0) & ((civil % 100 != 0) | (civil % 400 == 0))
    starts = torch.tensor([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334], device=days.device)
    day_of_month = of_year - (153 * march + 2) // 5
    day_of_year = starts[month - 1] + day_of_month + (is_leap & (month > 2))
    return civil, month, day_of_year, hours


def resample(table_ND: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Return a table of positions over grid `old` (rows, columns) for grid `new`, by bicubic interpolation."""
    if math.prod(old) != len(table_ND):
        raise InputError(f"a table of {len(table_ND)} positions does not fit a grid of {tuple(old)}")
    image = table_ND.unflatten(0, tuple(old)).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(image, tuple(new), mode="bicubic")[0].permute(1, 2, 0).flatten(0, 1)
