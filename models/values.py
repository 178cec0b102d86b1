"""Can these numbers be a sensor's, in the unit that it was trained in? Rescaled pixels are the commonest silent mistake.

Legend: B tiles, C channel, Y X pixels; pixels are normalised with the statistics of training.
"""

import torch
from torch import Tensor

from models.errors import InputError
from models.sensor import SensorSpec

STRANGE_STD = 50.0
"""Mean distance from the training mean, in training std, above which values are taken for rescaled ones."""
STRANGE_RANGE = 0.01
"""Range of a batch's values, in training std, below which, in all bands, they are taken for rescaled ones; equal ones are not."""


def check_values(normalised: Tensor, is_valid: Tensor, spec: SensorSpec) -> None:
    """Raise InputError if the valid values cannot be this sensor's in its unit."""
    distance = normalised.abs().sum((0, 2, 3)) / is_valid.sum().clamp_min(1)
    worst = int(distance.nan_to_num(torch.inf).argmax())
    found, band = float(distance[worst]), spec.bands[worst]
    if not found < STRANGE_STD:
        raise InputError(
            f"band {band} of sensor '{spec.name}' lies {found:.3g} std from the training mean, expected "
            f"less than {STRANGE_STD:g} (mean {spec.mean[worst]:g}, std {spec.std[worst]:g} {spec.unit}); "
            f"give pixels in '{spec.unit}' and mark missing ones in is_valid"
        )
    if spec.quantity == "height" or not is_valid.any():  # still water is flat
        return
    spread = _ranges(normalised, is_valid)
    widest = int(spread.argmax())
    if 0 < float(spread[widest]) < STRANGE_RANGE:
        raise InputError(
            f"all bands of sensor '{spec.name}' vary less than {STRANGE_RANGE:g} std of the training pixels ({spec.bands[widest]}: "
            f"{float(spread[widest]):.2g}), expected values in '{spec.unit}' with std {spec.std[widest]:g}; give unscaled pixels"
        )


def _ranges(normalised: Tensor, is_valid: Tensor) -> Tensor:
    """Return (C,): largest less smallest valid value of each band."""
    low, high = (normalised.masked_fill(~is_valid[:, None], fill) for fill in (torch.inf, -torch.inf))
    return high.amax((0, 2, 3)) - low.amin((0, 2, 3))
