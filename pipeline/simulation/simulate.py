"""Render a synthetic planet into the raw scenes of four sensors, with everything that is true about them beside it.

Where things lie on the ground is in `planet.py`, what they look like in `materials.py`, how numbers are stored in the sensors' own
YAML; which sensor looks when in `acquisitions.py`, what it sees in `imaging.py`.

Misplacement: `shift_x_m`, `shift_y_m` must be *added* to a scene's stated map coordinates, in metres east and north in
the planet's UTM frame, to get the true ones.
"""

import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.simulation.acquisitions import Acquisition, Sun, acquisitions, moment
from pipeline.simulation.config import CHANGE_DAY, YEAR, SimulateConfig
from pipeline.simulation.frame import Frame, Grid
from pipeline.simulation.imaging import Clouds, aerial_image, height_image, optical_image, radar_image, sampler
from pipeline.simulation.planet import CLASSES, FINE_M, TRUTH_M, Planet
from pipeline.simulation.scene_files import write_mask, write_scene, write_text, write_truth

MAX_SHIFT_PX = 1.5


def simulate(out: Path, config: SimulateConfig) -> dict[str, Any]:
    """Write a planet's scenes and truth under `out`; return a summary. A finished planet of the same config is left as it is."""
    finished, started = out / "simulate.json", out / "unfinished.json"
    wanted = config.model_dump(mode="json")
    for record in (finished, started):
        if record.is_file():
            found = json.loads(record.read_text())
            has = {"year": YEAR, **found["config"]}  # planets that were made before they had a year
            if has != wanted:
                other = [f"{k} {has.get(k)} is not {v}" for k, v in wanted.items() if has.get(k) != v]
                raise InputError(f"{out} holds another planet ({'; '.join(other)}): give the same settings, or an empty folder")
            if record is finished:
                return found["summary"]
    if out.is_dir() and any(out.iterdir()) and not started.is_file():
        raise InputError(f"{out} holds other files: expected an empty folder or a planet; give another folder")
    begin = time.perf_counter()
    for folder in (out / "scenes", out / "truth"):
        folder.mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps({"config": wanted}))
    frame = Frame.at(config)
    planet = Planet(np.random.default_rng([config.seed, 0]), config.size_m, config.num_changes)
    write_truth(out / "truth", planet, frame)
    scenes: dict[str, dict[str, Any]] = {}
    for acquisition in acquisitions(config, frame):
        scenes |= render(acquisition, planet, frame, config, out / "scenes")
    write_text(out / "truth" / "scenes.json", json.dumps(scenes, indent=1))
    shares = np.bincount(planet.before.classes.ravel(), minlength=len(CLASSES)) / planet.before.classes.size
    summary = {
        "crs": f"EPSG:{frame.crs.to_epsg()}",
        "bounds_m": [frame.west_m, frame.north_m - frame.size_m, frame.west_m + frame.size_m, frame.north_m],
        "scenes": sorted(scenes),
        "classes": {name: round(float(share), 4) for name, share in zip(CLASSES, shares)},
        "num_changes": len(planet.changes),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_text(finished, json.dumps({"config": wanted, "summary": summary}, indent=1))
    started.unlink()
    return summary


def render(
    acquisition: Acquisition, planet: Planet, frame: Frame, config: SimulateConfig, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write one acquisition's scenes under `folder`; return {scene id: truth}. Draws depend on nothing but seed and scene."""
    sensor = acquisition.sensor
    year = "" if config.year == YEAR else f" {config.year}"
    sky = _generator(config.seed, f"{sensor.name} {acquisition.number}{year}")
    surface = planet.before if acquisition.time < moment(YEAR, CHANGE_DAY, 0) else planet.after
    is_optical = sensor.quantity.endswith("reflectance")
    sun = Sun.at(acquisition.time, config.lat, config.lon)
    clouds = None
    if is_optical:
        cover = config.cloud_cover * (0.15 if acquisition.number == 0 else sky.uniform(0.5, 1.6))
        clouds = Clouds.drawn(sky, planet, cover, sun)
        sample = sampler(optical_image(sky, acquisition, planet, surface, clouds, sun), TRUTH_M, order=2)
    elif sensor.quantity == "sigma0":
        sample = sampler(radar_image(sky, acquisition, planet, surface), TRUTH_M, order=2)
    elif sensor.quantity == "height":
        sample = sampler(height_image(planet, surface), 2 * FINE_M, order=1)
    else:
        sample = sampler(aerial_image(sky, acquisition, surface, sun), FINE_M, order=1)
    truth = {}
    for scene_id, extent in zip(acquisition.scene_ids(), acquisition.extents):
        draw = _generator(config.seed, scene_id)
        reach_m = min(config.max_shift_m, MAX_SHIFT_PX * sensor.gsd_m) * draw.uniform(0.3, 1)
        bearing = draw.uniform(0, 2 * np.pi)
        is_reference = is_optical and acquisition.number == 0
        shift = (0.0, 0.0) if is_reference else (round(reach_m * np.cos(bearing), 3), round(reach_m * np.sin(bearing), 3))
        grid = Grid.over(frame, acquisition.crs, sensor.gsd_m, extent, shift)
        stored = sensor
        if is_optical and acquisition.number % 4 == 1:  # as ESA writes it since processing baseline 04.00
            stored = sensor.model_copy(update={"offset": -0.1})
        write_scene(folder / f"{scene_id}.tif", stored, acquisition, grid, planet.size_m, sample, draw)
        truth[scene_id] = {
            "sensor": sensor.name,
            "time": acquisition.time.isoformat(),
            "shift_x_m": shift[0],
            "shift_y_m": shift[1],
        }
        truth[scene_id]["cloud_fraction"] = 0.0
        if clouds is not None:
            truth[scene_id]["cloud_fraction"] = write_mask(
                folder / f"{scene_id}_cloud.tif", acquisition, grid, planet.size_m, clouds
            )
    return truth


def _generator(seed: int, name: str) -> np.random.Generator:
    """Return the stream of one named thing, the same whatever else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
