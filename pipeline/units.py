"""Physical quantities: the unit each is kept in, the forms in which files hold it, and what contradicts a stated form.

Backscatter comes as decibels, as linear power or as amplitude. Which, is declared by a sensor, a file, an item or the
user; numbers are only asked whether they contradict the declaration, never which form they might be.
"""

import numpy as np

from pipeline.errors import InputError

UNITS = {
    "surface_reflectance": "1",
    "toa_reflectance": "1",
    "sigma0": "dB",
    "gamma0": "dB",
    "height": "m",
    "digital_number": "1",
}
BACKSCATTER = ("sigma0", "gamma0")
# Factor of the decimal logarithm that leads from each form of backscatter to dB.
DECIBELS = {"power": 10.0, "amplitude": 20.0}
SPELLINGS = {
    "dB": ("db", "decibel", "decibels"),
    "power": ("power", "linear", "linear power", "intensity"),
    "amplitude": ("amplitude",),
    "m": ("m", "metre", "metres", "meter", "meters"),
    "1": ("1", "", "reflectance", "dn", "unitless", "dimensionless", "none"),
}
MIN_SAMPLES = 256


def forms(quantity: str) -> tuple[str, ...]:
    """Return the forms in which files may hold `quantity`; the first is its unit."""
    return (UNITS[quantity], *DECIBELS) if quantity in BACKSCATTER else (UNITS[quantity],)


def form_of(stated: str, quantity: str) -> str:
    """Return the form that a file or item means by the unit it states."""
    for form in forms(quantity):
        if stated.strip().lower() in SPELLINGS[form]:
            return form
    raise InputError(
        f"unit '{stated}' is not one of {quantity} (known: {', '.join(forms(quantity))}); convert it or correct the unit"
    )


def to_unit(values: np.ndarray, form: str) -> np.ndarray:
    """Convert float32 values from `form` to their quantity's unit; what has no logarithm becomes NaN."""
    if form not in DECIBELS:
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.float32(DECIBELS[form]) * np.log10(values), np.float32(np.nan)).astype(np.float32)


def contradiction(values: np.ndarray, form: str, valid_range: tuple[float, float]) -> str | None:
    """Return why `values`, sampled from a file in `form` after scale and offset, cannot be what they are said to be."""
    values = values[np.isfinite(values)]
    if values.size < MIN_SAMPLES:
        return None
    found = f"{values.min():.4g} .. {values.max():.4g}"
    if form in DECIBELS and (values < 0).mean() > 0.5:
        return f"said to be {form}, which is never negative, but its numbers are {found}"
    if form == "dB" and values.min() >= 0:
        return f"said to be dB, but none of its numbers is negative ({found}); linear power? say so with --unit power"
    physical = to_unit(values, form)
    low, high = valid_range
    if not ((physical >= low) & (physical <= high)).any():
        return f"none of its numbers ({found}) is within {low:g} .. {high:g}; its scale or unit is not what is stated"
    return None
