"""terraloom simulate OUT and terraloom scan FOLDER: where scenes come from, and how they become a STAC catalog."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import InputError
from pipeline.scan import Given, scan
from pipeline.sensors import load_sensor
from pipeline.simulation.config import SimulateConfig
from pipeline.simulation.simulate import simulate
from pipeline.stac import CATALOG_NAME, write_catalog


def simulate_planet(out: str, config: SimulateConfig) -> dict[str, Any]:
    """Render a planet into `out` and describe its scenes in `out/scenes/scenes.json`."""
    summary = simulate(Path(out), config)
    catalog = scan_folder(storage.join(out, "scenes"), None, None, None)
    return {
        "out": storage.absolute(out),
        "catalog": catalog["catalog"],
        "labels": storage.absolute(storage.join(out, "truth")),
        **summary,
    }


def scan_folder(folder: str, sensor: str | None, time: str | None, out: str | None, unit: str | None = None) -> dict[str, Any]:
    """Write a STAC ItemCollection of the raster files under `folder`; by default into the folder itself."""
    given = Given(load_sensor(sensor) if sensor else None, time_of(time) if time else None, unit)
    items, refused = scan(folder, given)
    if not items:
        shown = "; ".join(f"{file}: {reason}" for file, reason in list(refused.items())[:3])
        raise InputError(f"none of the {len(refused)} raster files under '{folder}' can be used: {shown}")
    url = out or storage.join(folder, CATALOG_NAME)
    write_catalog(items, url)
    sensors = Counter(item.properties["terraloom:sensor"]["name"] for item in items)
    assumed = Counter(item.properties["terraloom:assumed"] for item in items if "terraloom:assumed" in item.properties)
    return {
        "catalog": storage.absolute(url),
        "scenes": len(items),
        "sensors": dict(sensors),
        "assumed": dict(assumed),
        "refused": refused,
    }


def time_of(text: str) -> datetime:
    """Return an ISO 8601 time, UTC, as people give it."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise InputError(f"datetime '{text}' is not ISO 8601; expected for example 2018-05-01 or 2018-05-01T10:30:00") from None
