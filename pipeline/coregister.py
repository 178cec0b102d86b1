"""Scenes -> co-registered tiles: which scene is compared with which, on what grid, and what becomes a tile.

Pure functions of scenes and a grid; the job spreads them over a cluster and publishes what they return.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox

from pipeline.archive import Label, Tile
from pipeline.errors import InputError
from pipeline.grid import Grid, ShardCell, Site, zone_crs, zone_number
from pipeline.raster import open_raster, read_on_grid
from pipeline.registration import Registration, estimate_shift, unregistered
from pipeline.scene import Scene
from pipeline.sensors import Sensor

MAX_COMPARED_PX = 2048
STRUCTURE_WAVELENGTHS_NM = (560.0, 665.0, 842.0)


@dataclass(frozen=True)
class CoregisterConfig:
    """How scenes become tiles. A tile with less than `min_valid_fraction` of clear, covered pixels is not kept."""

    reference: str | None = None
    """Sensor that the others are registered to; default: the reflectance sensor with most scenes."""
    max_shift_m: float = 60.0
    """Largest shift searched for, metres."""
    min_valid_fraction: float = 0.3
    register: bool = True
    """False reprojects only (for scenes that are registered already)."""


def common_sensors(scenes: Sequence[Scene]) -> dict[str, Sensor]:
    """Return the sensors of `scenes`, each with the bands that every one of its scenes has."""
    by_sensor: dict[str, list[Scene]] = defaultdict(list)
    for scene in scenes:
        by_sensor[scene.sensor.name].append(scene)
    sensors = {}
    for name, group in by_sensor.items():
        shared = set.intersection(*(set(scene.bands) for scene in group))
        if not shared:
            raise InputError(f"the scenes of sensor '{name}' have no band in common; pass them as separate sensors")
        sensors[name] = group[0].sensor.select(tuple(shared))
    return sensors


def references(scenes: Sequence[Scene], sensor_name: str | None) -> dict[str, Scene | None]:
    """Return, for each scene id, the scene it is registered to; None for those that stay where they are.

    The earliest scene of the reference sensor over some ground holds; later ones follow it, and other sensors
    follow the reference scene nearest in time.
    """
    if sensor_name is None:
        optical = [s for s in scenes if s.sensor.quantity.endswith("reflectance")]
        counts = [scene.sensor.name for scene in (optical or scenes)]
        sensor_name = max(sorted(set(counts)), key=counts.count)
    held = sorted((s for s in scenes if s.sensor.name == sensor_name), key=lambda s: (s.time, s.id))
    if not held:
        known = ", ".join(sorted({s.sensor.name for s in scenes}))
        raise InputError(f"reference sensor '{sensor_name}' has no scene here (sensors: {known})")
    chosen: dict[str, Scene | None] = {}
    for scene in scenes:
        over = [other for other in held if _overlap(other, scene) > 0]
        if scene.sensor.name == sensor_name:
            earlier = [other for other in over if (other.time, other.id) < (scene.time, scene.id)]
            chosen[scene.id] = earlier[0] if earlier else None
        else:
            chosen[scene.id] = max(over, key=lambda o: (round(_overlap(o, scene), 1), -abs(o.time - scene.time)), default=None)
    return chosen


def _overlap(first: Scene, second: Scene) -> float:
    return (first.footprint & second.footprint).area / second.footprint.area


def comparison_grid(scene: Scene, reference: Scene) -> GeoBox:
    """Return the UTM grid on which the two are compared: their overlap at the coarser GSD, at most 2048 px a side."""
    overlap = scene.footprint & reference.footprint
    centre = overlap.centroid.coords[0]
    zone = f"{int(zone_number(centre[0])):02d}{'N' if centre[1] >= 0 else 'S'}"
    gsd = max(scene.sensor.gsd_m, reference.sensor.gsd_m)
    bounds = overlap.to_crs(zone_crs(zone)).boundingbox
    side = MAX_COMPARED_PX * gsd / 2
    x, y = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
    outline = (
        max(bounds.left, x - side),
        max(bounds.bottom, y - side),
        min(bounds.right, x + side),
        min(bounds.top, y + side),
    )
    return GeoBox.from_bbox(outline, zone_crs(zone), resolution=gsd)


def read_structure(scene: Scene, geobox: GeoBox, shift_m: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Return up to three bands for comparison (band, y, x), and (y, x) bool where they are clear of gaps and cloud."""
    pixels, is_valid = scene.read(geobox, structure_bands(scene), shift_m)
    return pixels, is_valid & ~scene.read_cloud(geobox, shift_m)


def structure_bands(scene: Scene) -> tuple[str, ...]:
    present = [scene.sensor.band(name) for name in scene.bands]
    known = [band for band in present if band.wavelength_nm is not None]
    if len(present) <= 3 or not known:
        return tuple(band.name for band in present[:3])
    nearest = [min(known, key=lambda b: abs((b.wavelength_nm or 0) - wanted)).name for wanted in STRUCTURE_WAVELENGTHS_NM]
    return tuple(dict.fromkeys(nearest))


def register_scene(scene: Scene, reference: Scene, reference_shift_m: tuple[float, float], max_shift_m: float) -> Registration:
    """Estimate the scene's shift against a reference that is itself moved by `reference_shift_m`.

    An unreadable scene is an InputError; an unreadable reference is not the scene's fault and leaves it where it is.
    """
    geobox = comparison_grid(scene, reference)
    if min(geobox.shape) < 32:
        return unregistered(f"overlap with '{reference.id}' is under 32 pixels")
    try:
        fixed, fixed_valid = read_structure(reference, geobox, reference_shift_m)
    except InputError as error:
        return unregistered(f"its reference {reference.id} cannot be read ({error})")
    moving, moving_valid = read_structure(scene, geobox)
    estimate = estimate_shift(fixed, moving, fixed_valid, moving_valid, geobox.resolution.x, max_shift_m)
    return replace(estimate, reason=f"against {reference.id}: {estimate.reason}")


@dataclass(frozen=True)
class LabelRaster:
    """One raster of class ids, valid from `time` on. `name` is the label's name."""

    name: str
    href: str
    classes: tuple[str, ...]
    time: datetime


def read_label_rasters(folder: str) -> list[LabelRaster]:
    """Find label rasters `<name>_<date>.tif` in `folder`: tag CLASSES (JSON list, index = id) and tag DATETIME."""
    rasters = []
    for path in sorted(Path(folder).glob("*.tif")):
        with open_raster(str(path)) as source:
            tags = source.tags()
        if "CLASSES" in tags:
            time = datetime.fromisoformat(tags["DATETIME"])
            rasters.append(LabelRaster(path.stem.rpartition("_")[0], str(path.resolve()), tuple(json.loads(tags["CLASSES"])), time))
    if not rasters:
        raise InputError(f"no label raster in '{folder}'; expected GeoTIFFs with the tags CLASSES (JSON list) and DATETIME")
    return rasters


def label_definitions(rasters: Sequence[LabelRaster]) -> dict[str, Label]:
    return {raster.name: Label("class", "tile", raster.classes) for raster in rasters}


def build_tiles(
    cell: ShardCell,
    grid: Grid,
    scenes: Sequence[Scene],
    sensors: dict[str, Sensor],
    registrations: dict[str, Registration],
    labels: Sequence[LabelRaster],
    min_valid_fraction: float,
) -> tuple[list[Tile], dict[str, str]]:
    """Return the shard's tiles, every scene resampled once, and {scene id: reason} for scenes that could not be read."""
    tiles: list[Tile] = []
    refused: dict[str, str] = {}
    places = grid.sites(cell)
    classes = {raster: _majority_class(raster, cell, grid, places) for raster in labels}
    for scene in sorted(scenes, key=lambda s: (s.sensor.name, s.time, s.id)):
        sensor = sensors[scene.sensor.name]
        registration = registrations.get(scene.id, unregistered("not compared"))
        geobox = grid.geobox(cell, sensor.gsd_m)
        try:
            physical, has_data = scene.read(geobox, sensor.band_names, registration.shift_m)
            is_cloud = scene.read_cloud(geobox, registration.shift_m)
        except InputError as error:
            refused[scene.id] = str(error)
            continue
        stored, is_clear = sensor.to_stored(physical), has_data & ~is_cloud
        size = sensor.tile_shape(grid.site_size_m)[0]
        for site, i, j in places:
            window = (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
            if is_clear[window].mean() < min_valid_fraction:
                continue
            current = _current_labels(classes, scene.time, site)
            tiles.append(
                _tile(
                    scene,
                    sensor,
                    site,
                    grid,
                    stored[:, *window],
                    is_clear[window],
                    is_cloud[window],
                    registration,
                    current,
                )
            )
    return _ranked(tiles), refused


def _tile(
    scene: Scene,
    sensor: Sensor,
    site: Site,
    grid: Grid,
    pixels: np.ndarray,
    is_valid: np.ndarray,
    is_cloud: np.ndarray,
    registration: Registration,
    labels: dict[str, float],
) -> Tile:
    bounds = grid.site_bounds(site)
    return Tile(
        sensor=sensor.name,
        site=site.id,
        pixels=np.where(is_valid, pixels, 0).astype(pixels.dtype),
        is_valid=is_valid,
        time=scene.time,
        order=0,
        scene=scene.id,
        crs=zone_crs(site.zone),
        transform=(sensor.gsd_m, 0.0, bounds.left, 0.0, -sensor.gsd_m, bounds.top),
        geometry=bounds.polygon.to_crs("EPSG:4326").geom,
        registration=registration,
        cloud_fraction=float(is_cloud.mean()),
        labels=labels,
    )


def _ranked(tiles: list[Tile]) -> list[Tile]:
    """Return the tiles with `order` counting the dates of each (site, sensor) from 0."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    ranked = []
    for tile in sorted(tiles, key=lambda t: (t.sensor, t.site, t.time, t.scene)):
        ranked.append(replace(tile, order=seen[tile.site, tile.sensor]))
        seen[tile.site, tile.sensor] += 1
    return ranked


def _majority_class(raster: LabelRaster, cell: ShardCell, grid: Grid, places: list[tuple[Site, int, int]]) -> dict[str, int]:
    geobox = grid.geobox(cell, grid.site_size_m / 32)
    with open_raster(raster.href) as source:
        nodata = source.nodata
    classes, is_valid = read_on_grid(raster.href, (1,), geobox, nodata, categorical=True)
    majority = {}
    for site, i, j in places:
        window = (slice(i * 32, (i + 1) * 32), slice(j * 32, (j + 1) * 32))
        inside = classes[0][window][is_valid[window]]
        if len(inside) > 512:
            majority[site.id] = int(np.bincount(inside, minlength=len(raster.classes)).argmax())
    return majority


def _current_labels(classes: dict[LabelRaster, dict[str, int]], time: datetime, site: Site) -> dict[str, float]:
    current: dict[str, float] = {}
    for raster in sorted(classes, key=lambda r: r.time):
        if site.id in classes[raster] and (raster.time <= time or raster.name not in current):
            current[raster.name] = float(classes[raster][site.id])
    return current
