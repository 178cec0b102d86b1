"""Sensors are data: one YAML each, read here into typed, checked definitions.

This file decides what a sensor definition must say and is the only place where stored numbers become physical
units and back. It leaves to `scene.py` which file holds which band.
"""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.errors import InputError

FOLDER = Path(__file__).parent / "sensors"
UNITS = {
    "surface_reflectance": "1",
    "toa_reflectance": "1",
    "sigma0": "dB",
    "gamma0": "dB",
    "height": "m",
    "digital_number": "1",
}


class Band(BaseModel):
    """One band; passive bands have a wavelength, radar bands a frequency and polarisation, heights neither."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gsd_m: float
    aliases: tuple[str, ...] = ()
    wavelength_nm: float | None = None
    bandwidth_nm: float | None = None
    frequency_ghz: float | None = None
    polarisation: Literal["VV", "VH", "HH", "HV"] | None = None


class Sensor(BaseModel):
    """One instrument product. `gsd_m` is the pixel size of its tiles; bands of coarser native GSD are resampled to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sensing: Literal["passive", "active"]
    quantity: str
    unit: str
    gsd_m: float
    dtype: Literal["uint8", "int16", "uint16", "float32"]
    scale: float = 1.0
    offset: float = 0.0
    valid_range: tuple[float, float]
    bands: tuple[Band, ...]
    filename: str | None = None
    """Regular expression that recognises this product's files by name (used by `scan`)."""

    @model_validator(mode="after")
    def _check(self) -> "Sensor":
        if self.quantity not in UNITS:
            raise ValueError(f"quantity '{self.quantity}' is unknown (known: {', '.join(UNITS)})")
        if self.unit != UNITS[self.quantity]:
            raise ValueError(f"unit '{self.unit}' does not fit quantity '{self.quantity}' (expected '{UNITS[self.quantity]}')")
        names = [band.name for band in self.bands]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"band names must be present and distinct, found {names}")
        if self.sensing == "active" and self.quantity in ("sigma0", "gamma0"):
            missing = [b.name for b in self.bands if b.frequency_ghz is None or b.polarisation is None]
            if missing:
                raise ValueError(f"radar bands need frequency_ghz and polarisation, missing on {missing}")
        if self.quantity.endswith("reflectance"):
            missing = [b.name for b in self.bands if b.wavelength_nm is None]
            if missing:
                raise ValueError(f"reflectance bands need wavelength_nm, missing on {missing}")
        return self

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    def band(self, name: str) -> Band:
        """Return the band called `name`, by name or alias, whatever the case."""
        for band in self.bands:
            if name.lower() in (band.name.lower(), *(alias.lower() for alias in band.aliases)):
                return band
        known = [n for b in self.bands for n in (b.name, *b.aliases)]
        raise InputError(f"band '{name}' is not in sensor '{self.name}' (has {', '.join(self.band_names)}){_hint(name, known)}")

    def select(self, names: tuple[str, ...]) -> "Sensor":
        """Return this sensor with only `names`, in this sensor's own order."""
        wanted = {self.band(name).name for name in names}
        return self.model_copy(update={"bands": tuple(b for b in self.bands if b.name in wanted)})

    def tile_shape(self, site_size_m: float) -> tuple[int, int]:
        """Return (y, x) in pixels of one tile over a square site of `site_size_m` metres."""
        pixels = site_size_m / self.gsd_m
        if abs(pixels - round(pixels)) > 1e-6:
            raise InputError(f"site of {site_size_m:g} m is not a whole number of {self.gsd_m:g} m pixels of sensor '{self.name}'")
        return round(pixels), round(pixels)

    def to_physical(self, stored: np.ndarray, scale: float | None = None, offset: float | None = None) -> np.ndarray:
        """Convert stored numbers to `unit` as float32; `scale`, `offset` are a file's own where they differ."""
        factor = np.float32(self.scale if scale is None else scale)
        return stored.astype(np.float32) * factor + np.float32(self.offset if offset is None else offset)

    def to_stored(self, physical: np.ndarray) -> np.ndarray:
        """Convert `unit` to this sensor's dtype, rounding and clipping to what the dtype can hold."""
        if self.dtype == "float32":
            return ((physical - self.offset) / self.scale).astype(np.float32)
        limits = np.iinfo(self.dtype)
        counts = np.rint((np.nan_to_num(physical) - self.offset) / self.scale)
        return np.clip(counts, limits.min, limits.max).astype(self.dtype)

    def restored(self, numbers: np.ndarray, scale: float, offset: float) -> np.ndarray:
        """Convert a file's numbers, by its own scale and offset, to this sensor's dtype.

        Small integers go through a table of all their values, ten times faster than through physical units and back.
        """
        if numbers.dtype not in (np.uint8, np.uint16):
            return self.to_stored(self.to_physical(numbers, scale, offset))
        every = np.arange(np.iinfo(numbers.dtype).max + 1, dtype=numbers.dtype)
        table = self.to_stored(self.to_physical(every, scale, offset))
        return numbers if np.array_equal(table, every) and table.dtype == numbers.dtype else table[numbers]


def sensor_from_dict(content: dict[str, Any], source: str) -> Sensor:
    """Build a sensor from parsed YAML or JSON; `source` names it in the error."""
    try:
        return Sensor.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'sensor'}: {e['msg']}" for e in error.errors())
        raise InputError(f"sensor definition {source} is not valid: {faults}") from None


@cache
def known_sensors() -> tuple[str, ...]:
    """Names of the sensors that ship with Terraloom."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def load_sensor(name: str) -> Sensor:
    """Load a shipped sensor by name, or any sensor from the path of a YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"sensor '{name}' is unknown (known: {', '.join(known_sensors())}){_hint(name, known_sensors())}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"sensor definition {path} is not YAML: {' '.join(str(error).split())}") from None
    return sensor_from_dict(content, str(path))


def recognise(filename: str) -> Sensor | None:
    """Return the shipped sensor whose `filename` pattern matches, or None."""
    for name in known_sensors():
        sensor = load_sensor(name)
        if sensor.filename and re.search(sensor.filename, filename):
            return sensor
    return None


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
