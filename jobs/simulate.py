"""terraloom simulate OUT and terraloom scan FOLDER: where scenes come from, and how they become a STAC catalog."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import InputError
from pipeline.scene import CATALOG_NAME, scan, write_catalog
from pipeline.simulate import SimulateConfig, simulate


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


def scan_folder(folder: str, sensor: str | None, time: str | None, out: str | None) -> dict[str, Any]:
    """Write a STAC ItemCollection of the raster files under `folder`; by default into the folder itself."""
    try:
        when = datetime.fromisoformat(time).replace(tzinfo=UTC) if time else None
    except ValueError:
        raise InputError(f"datetime '{time}' is not ISO 8601; expected for example 2018-05-01 or 2018-05-01T10:30:00") from None
    items, refused = scan(folder, sensor, when)
    if not items:
        shown = "; ".join(f"{file}: {reason}" for file, reason in list(refused.items())[:3])
        raise InputError(f"none of the {len(refused)} raster files under '{folder}' can be used: {shown}")
    url = out or storage.join(folder, CATALOG_NAME)
    write_catalog(items, url)
    sensors: dict[str, int] = {}
    for item in items:
        name = item.properties["terraloom:sensor"]["name"]
        sensors[name] = sensors.get(name, 0) + 1
    return {"catalog": storage.absolute(url), "scenes": len(items), "sensors": sensors, "refused": refused}
