"""terraloom sensors: what is known of each instrument product, and what is wrong with a definition of one's own."""

from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.sensors import definition_faults, known_sensors, load_sensor, read_definition, sensor_from_dict


def list_sensors() -> dict[str, Any]:
    """Return, for each shipped sensor, its quantity, pixel size and bands in one line."""
    sensors = [load_sensor(name) for name in known_sensors()]
    return {s.name: f"{s.sensing}, {s.quantity} [{s.unit}], {s.gsd_m:g} m: {' '.join(s.band_names)}" for s in sensors}


def show_sensor(name: str) -> dict[str, Any]:
    """Return the whole definition of a sensor."""
    return load_sensor(name).model_dump(mode="json", exclude_defaults=True)


def check_sensor(file: str) -> dict[str, Any]:
    """Say everything that is missing or wrong in a sensor YAML at once, each in a line of an InputError."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"sensor definition '{file}' does not exist; give a YAML file")
    content = read_definition(path)
    if faults := definition_faults(content):
        raise InputError("\n".join([f"sensor definition '{file}' has {len(faults)} faults:", *(f"- {fault}" for fault in faults)]))
    sensor = sensor_from_dict(content, file)
    return {"file": file, "faults": 0, "sensor": sensor.name, "bands": list(sensor.band_names)}
