"""What contradicts itself in a sensor definition.

Works on parsed YAML that may also be wrong in other ways, so that everything that is wrong can be said at once. Whether
fields are there and have the right type is left to `sensors`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.units import BACKSCATTER, UNITS, forms


def contradictions(content: Mapping[str, Any]) -> list[str]:
    """Return what contradicts itself in a definition, told from parsed YAML that may be wrong in other ways too."""
    faults = []
    quantity, unit = content.get("quantity"), content.get("unit")
    if isinstance(quantity, str) and quantity not in UNITS:
        faults.append(f"quantity '{quantity}' is unknown (known: {', '.join(UNITS)}){hint(quantity, UNITS)}")
    elif isinstance(quantity, str) and isinstance(unit, str) and unit != UNITS[quantity]:
        faults.append(f"unit '{unit}' does not fit quantity '{quantity}' (expected '{UNITS[quantity]}')")
    stated = content.get("bands")
    bands = [_as_mapping(band) for band in stated] if isinstance(stated, Sequence) and not isinstance(stated, str) else None
    if bands is not None:
        faults += _band_faults(bands, str(quantity))
    faults += _range_faults(content) + _delivery_faults(content.get("delivered"), quantity)
    pattern = content.get("filename")
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error as error:
            faults.append(f"filename '{pattern}' is not a regular expression ({error})")
    return faults


def _band_faults(bands: list[Mapping[str, Any]], quantity: str) -> list[str]:
    faults = []
    names = [str(band.get("name")) for band in bands]
    if len(set(names)) != len(names) or not names:
        faults.append(f"band names must be present and distinct, found {names}")
    called = [str(name).lower() for band in bands for name in {str(band.get("name")), *map(str, band.get("aliases") or ())}]
    repeated = sorted({name for name in called if called.count(name) > 1})
    if repeated and len(set(names)) == len(names):
        faults.append(f"one name stands for several bands: {repeated}; names and aliases must differ, whatever the case")
    needed = {"reflectance bands": ["wavelength_nm"]} if quantity.endswith("reflectance") else {}
    if quantity in BACKSCATTER:
        needed = {"radar bands": ["frequency_ghz", "polarisation"]}
    for kind, fields in needed.items():
        if missing := [str(band.get("name")) for band in bands if any(band.get(field) is None for field in fields)]:
            faults.append(f"{kind} need {' and '.join(fields)}, missing on {missing}")
    for field in ("gsd_m", "wavelength_nm", "bandwidth_nm", "frequency_ghz"):
        wrong = [str(b.get("name")) for b in bands if isinstance(b.get(field), (int, float)) and not b[field] > 0]
        if wrong:
            faults.append(f"{field} must be above 0, is not on {wrong}")
    return faults


def _range_faults(content: Mapping[str, Any]) -> list[str]:
    faults = [f"{field} must not be 0" for field in ("scale", "gsd_m") if content.get(field) == 0]
    match content.get("valid_range"):
        case [int() | float() as low, int() | float() as high] if not low < high:
            faults.append(f"valid_range [{low:g}, {high:g}] is empty; expected [lowest, highest] in the sensor's unit")
        case [int() | float() as low, int() | float() as high] if content.get("dtype") in ("uint8", "int16", "uint16"):
            limits = np.iinfo(content["dtype"])
            scale, offset = content.get("scale", 1.0), content.get("offset", 0.0)
            if isinstance(scale, (int, float)) and isinstance(offset, (int, float)) and scale:
                least, most = sorted((limits.min * scale + offset, limits.max * scale + offset))
                if low < least - 1e-9 * abs(least) or high > most + 1e-9 * abs(most):
                    faults.append(
                        f"{content['dtype']} x {scale:g} + {offset:g} holds {least:g} .. {most:g}, not all of {low:g} .. {high:g}"
                    )
    return faults


def _delivery_faults(delivered: Any, quantity: Any) -> list[str]:
    form = _as_mapping(delivered).get("form")
    if form is None or quantity not in UNITS or form in forms(quantity):
        return []
    return [f"delivered.form '{form}' does not fit quantity '{quantity}' (expected {' or '.join(forms(quantity))})"]


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def hint(name: str, known: Iterable[str]) -> str:
    """Return a suggestion of the known name that is most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
