"""Sensors are data: one YAML each, read here into typed, checked definitions.

Decides what a sensor definition must say, and says everything that is wrong with one at once. The only place where
stored numbers become physical units and back. Leaves to `scan` and `stac` which file holds which band.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.definition import contradictions, hint
from pipeline.errors import InputError
from pipeline.masks import Mask
from pipeline.units import to_unit

FOLDER = Path(__file__).parent / "sensors"
SEPARATORS = "_.-"  # the last one last: it stands in a character class


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


class Delivered(BaseModel):
    """How files of this product hold their numbers where they, their item and their metadata do not say otherwise.

    form(stored * scale + offset) is in the sensor's unit. Files of floats are taken to hold `form` itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    form: str | None = None
    """Backscatter: dB, power or amplitude. Default: the sensor's unit."""
    metadata: Literal["safe", "mtl"] | None = None
    """Product metadata that states scale and offset: MTD_MSIL1C.xml / MTD_MSIL2A.xml, or Landsat's MTL."""
    needs_metadata: bool = False
    """Without that metadata the numbers have no unit, and the scene is refused."""
    baseline_offsets: dict[str, float] = {}
    """Offset in the sensor's unit from each processing baseline on, such as "04.00": -0.1."""

    def offset_at(self, baseline: str) -> float:
        """Return the offset of files of processing baseline `baseline`, such as 05.09."""
        reached = [since for since in self.baseline_offsets if _version(since) <= _version(baseline)]
        return self.baseline_offsets[max(reached, key=_version)] if reached else self.offset


def _version(baseline: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in baseline.split("."))
    except ValueError:
        raise InputError(f"processing baseline '{baseline}' is not a version; expected for example 04.00") from None


class Sensor(BaseModel):
    """One instrument product. `gsd_m` is the pixel size of its tiles; bands of another native GSD are resampled to it.

    `dtype`, `scale`, `offset` say how an archive keeps its pixels, `delivered` how files come (default: like the archive).
    """

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
    """Regular expression that recognises this product by the name of a file, of a folder around it, or of an item."""
    collections: tuple[str, ...] = ()
    """STAC collections whose items are of this sensor."""
    delivered: Delivered | None = None
    masks: tuple[Mask, ...] = ()
    """Quality layers, the best first."""
    auxiliary: tuple[str, ...] = ()
    """Name endings of files that belong to the product and are neither bands nor masks."""

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    def band(self, name: str) -> Band:
        """Return the band called `name`, by name or alias, whatever the case."""
        for band in self.bands:
            if name.lower() in (band.name.lower(), *(alias.lower() for alias in band.aliases)):
                return band
        known = [n for b in self.bands for n in (b.name, *b.aliases)]
        raise InputError(f"band '{name}' is not in sensor '{self.name}' (has {', '.join(self.band_names)}){hint(name, known)}")

    def has_band(self, name: str) -> bool:
        return any(name.lower() in (b.name.lower(), *(a.lower() for a in b.aliases)) for b in self.bands)

    def mask(self, ending: str) -> Mask | None:
        """Return the quality layer whose file or asset is called `ending`."""
        return next((mask for mask in self.masks if ending.lower() in (e.lower() for e in mask.endings)), None)

    def is_auxiliary(self, ending: str) -> bool:
        return any(re.match(rf"{re.escape(name)}([{SEPARATORS}]|$)", ending, re.IGNORECASE) for name in self.auxiliary)

    def split_name(self, stem: str) -> tuple[str, str] | None:
        """Return (what is before, ending) of a name that ends in a band, mask or auxiliary layer of this sensor."""
        stem = re.sub(r"_\d+m$", "", stem)  # Sentinel-2 L2A: _B02_10m
        starts = [0, *(i + 1 for i, letter in enumerate(stem) if letter in SEPARATORS)]
        for start in starts:
            ending = stem[start:]
            # Masks first, and the longest ending first: MSK_DETFOO_B02 is a footprint, not band B02.
            if self.mask(ending) or self.is_auxiliary(ending) or self.has_band(ending):
                return stem[: max(0, start - 1)], ending
        return None

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

    def to_physical(
        self, stored: np.ndarray, scale: float | None = None, offset: float | None = None, form: str | None = None
    ) -> np.ndarray:
        """Convert stored numbers to `unit` as float32; `scale`, `offset` and `form` are a file's own where they differ."""
        factor = np.float32(self.scale if scale is None else scale)
        values = stored.astype(np.float32) * factor + np.float32(self.offset if offset is None else offset)
        return to_unit(values, form or self.unit)

    def to_stored(self, physical: np.ndarray) -> np.ndarray:
        """Convert `unit` to this sensor's dtype, rounding and clipping to what the dtype can hold."""
        if self.dtype == "float32":
            return ((physical - self.offset) / self.scale).astype(np.float32)
        limits = np.iinfo(self.dtype)
        counts = np.rint((np.nan_to_num(physical) - self.offset) / self.scale)
        return np.clip(counts, limits.min, limits.max).astype(self.dtype)

    def restored(self, numbers: np.ndarray, scale: float, offset: float, form: str) -> np.ndarray:
        """Convert a file's numbers, by its own scale, offset and form, to this sensor's dtype.

        Small integers go through a table of all their values, ten times faster than through physical units and back.
        """
        if numbers.dtype not in (np.uint8, np.uint16):
            return self.to_stored(self.to_physical(numbers, scale, offset, form))
        every = np.arange(np.iinfo(numbers.dtype).max + 1, dtype=numbers.dtype)
        table = self.to_stored(self.to_physical(every, scale, offset, form))
        return numbers if np.array_equal(table, every) and table.dtype == numbers.dtype else table[numbers]

    def delivery(self, dtype: str) -> Delivered:
        """Return how a file of `dtype` holds its numbers if it says nothing of it."""
        default_nodata = None if self.dtype in ("uint8", "float32") else 0.0
        stated = self.delivered or Delivered(scale=self.scale, offset=self.offset, nodata=default_nodata)
        changes: dict[str, Any] = {"form": stated.form or self.unit}
        if dtype.startswith("float"):
            # A zero or -9999 in whole numbers means no measurement; a float of 0 may be one, so files must say it.
            changes |= {"scale": 1.0, "offset": 0.0, "nodata": None, "baseline_offsets": {}}
        return stated.model_copy(update=changes)


def definition_faults(content: Any) -> list[str]:
    """Return, one line each, everything that is missing or wrong in a sensor definition; none means it is valid."""
    if not isinstance(content, Mapping):
        return [f"holds {type(content).__name__} instead of fields such as name, quantity, unit, bands"]
    faults = contradictions(content)
    try:
        Sensor.model_validate(content)
    except ValidationError as error:
        faults = [_field_fault(fault) for fault in error.errors()] + faults
    return faults


def _field_fault(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{place}: is missing"
    if fault["type"] == "extra_forbidden":
        known = Band.model_fields if fault["loc"][0] == "bands" else Sensor.model_fields
        return f"{place}: is not a field{hint(str(fault['loc'][-1]), known)}"
    return f"{place}: {fault['msg']} (found {fault['input']!r})"


def sensor_from_dict(content: Any, source: str) -> Sensor:
    """Build a sensor from parsed YAML or JSON; `source` names it in the error."""
    if faults := definition_faults(content):
        raise InputError(f"sensor definition {source} is not valid: {'; '.join(faults)}")
    return Sensor.model_validate(content)


def read_definition(path: Path) -> Any:
    """Return the parsed YAML of a sensor definition."""
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"sensor definition {path} is not YAML: {' '.join(str(error).split())}") from None


@cache
def known_sensors() -> tuple[str, ...]:
    """Names of the sensors that ship with Terraloom."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def load_sensor(name: str) -> Sensor:
    """Load a shipped sensor by name, or any sensor from the path of a YAML file."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"sensor '{name}' is unknown (known: {', '.join(known_sensors())}){hint(name, known_sensors())}")
    return sensor_from_dict(read_definition(path), str(path))


def recognise(names: Sequence[str], sensors: Sequence[Sensor] = ()) -> Sensor | None:
    """Return the sensor whose `filename` pattern fits the first of `names` that any fits; by default of the shipped ones."""
    candidates = list(sensors) or [load_sensor(name) for name in known_sensors()]
    for name in names:
        found = [sensor for sensor in candidates if sensor.filename and re.search(sensor.filename, name)]
        if len(found) > 1:
            raise InputError(f"the name '{name}' fits sensors {' and '.join(s.name for s in found)}; say which with --sensor")
        if found:
            return found[0]
    return None
