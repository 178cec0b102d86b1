"""Product metadata: the XML of a Sentinel-2 SAFE and the MTL of a Landsat scene, as scale and offset by band.

The offset that Sentinel-2 has had since processing baseline 04.00 is read from here, never told from a date.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from xml.etree import ElementTree

from pipeline.errors import InputError
from pipeline.sensors import Sensor

# The order of band_id in MTD_MSIL1C.xml and MTD_MSIL2A.xml.
SAFE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
SAFE_NAME = re.compile(r"MTD_MSIL\w+\.xml$")
MTL_NAME = re.compile(r"(?P<scene>.+)_MTL\.(txt|json|xml)$", re.IGNORECASE)


@dataclass(frozen=True)
class Calibration:
    """What a product says of its numbers: reflectance = stored * scale + offset, {band: (scale, offset)}."""

    source: str
    bands: Mapping[str, tuple[float, float]]
    time: datetime

    def of(self, bands: tuple[str, ...]) -> tuple[float, float]:
        """Return the one (scale, offset) of all `bands`."""
        if missing := [band for band in bands if band not in self.bands]:
            raise InputError(f"its metadata '{self.source}' does not state the scale of {missing}")
        stated = {self.bands[band] for band in bands}
        if len(stated) > 1:
            raise InputError(f"its metadata '{self.source}' has another scale for each of its bands; give one file per band")
        return stated.pop()


def read_metadata(name: str, content: bytes, sensor: Sensor) -> Calibration:
    """Parse the metadata file called `name`; what it lacks is an InputError."""
    try:
        text = content.decode()
        return _read_safe(name, text) if SAFE_NAME.search(name) else _read_mtl(name, text, sensor)
    except (ElementTree.ParseError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"its metadata '{name}' cannot be parsed ({error})") from None
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"its metadata '{name}' does not state {error}") from None


def _read_safe(name: str, text: str) -> Calibration:
    root = ElementTree.fromstring(text)
    level2 = root.find(".//BOA_QUANTIFICATION_VALUE") is not None
    quantification = float(_text(root, "BOA_QUANTIFICATION_VALUE" if level2 else "QUANTIFICATION_VALUE"))
    stated = root.iter("BOA_ADD_OFFSET" if level2 else "RADIO_ADD_OFFSET")
    offsets = {SAFE_BANDS[int(element.get("band_id", "-1"))]: float(element.text or "") for element in stated}
    baseline = _text(root, "PROCESSING_BASELINE")
    if not offsets and float(baseline) >= 4:
        raise KeyError(f"the offsets that baseline {baseline} has")
    bands = {band: (1 / quantification, offsets.get(band, 0.0) / quantification) for band in SAFE_BANDS}
    return Calibration(name, bands, datetime.fromisoformat(_text(root, "PRODUCT_START_TIME")))


def _text(root: ElementTree.Element, tag: str) -> str:
    found = root.find(f".//{tag}")
    if found is None or not found.text:
        raise KeyError(tag)
    return found.text.strip()


def _read_mtl(name: str, text: str, sensor: Sensor) -> Calibration:
    groups = _mtl_groups(name, text)
    attributes = {**groups.get("PRODUCT_METADATA", {}), **groups.get("IMAGE_ATTRIBUTES", {})}
    if sensor.quantity == "toa_reflectance":
        rescaling = groups.get("LEVEL1_RADIOMETRIC_RESCALING") or groups["RADIOMETRIC_RESCALING"]
        sun = math.sin(math.radians(float(attributes["SUN_ELEVATION"])))
        if sun <= 0:
            raise InputError(f"its metadata '{name}' has the sun below the horizon; it has no reflectance")
    else:
        rescaling, sun = groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"], 1.0
    bands = {}
    for band in sensor.band_names:
        number = band.removeprefix("B")
        if f"REFLECTANCE_MULT_BAND_{number}" in rescaling:
            scale, offset = (float(rescaling[f"REFLECTANCE_{kind}_BAND_{number}"]) / sun for kind in ("MULT", "ADD"))
            bands[band] = (scale, offset)
    if not bands:
        raise KeyError("REFLECTANCE_MULT_BAND_1")
    # Landsat states the time with seven digits of a second; ISO 8601 in Python has six.
    stated = f"{attributes['DATE_ACQUIRED']}T{attributes['SCENE_CENTER_TIME'].rstrip('Z')[:15]}+00:00"
    return Calibration(name, bands, datetime.fromisoformat(stated))


def _mtl_groups(name: str, text: str) -> dict[str, dict[str, str]]:
    """Return {group: {key: value}} of an MTL in any of its three notations; keys repeat between groups."""
    if name.lower().endswith(".json"):
        (root,) = json.loads(text).values()
        return {group: {k: str(v) for k, v in values.items()} for group, values in root.items()}
    if name.lower().endswith(".xml"):
        return {group.tag: {entry.tag: entry.text or "" for entry in group} for group in ElementTree.fromstring(text)}
    groups: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = (part.strip().strip('"') for part in line.partition("="))
        if key == "GROUP":
            current = groups.setdefault(value, {})
        elif value and key != "END_GROUP":
            current[key] = value
    return groups
