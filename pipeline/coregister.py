"""Scenes -> co-registered tiles: which scene is compared with which, on what grid, and what becomes a tile.

Pure functions of scenes and a grid; the job spreads them over a cluster and publishes what they return.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from odc.geo.geobox import GeoBox
from shapely import STRtree

from pipeline.alignment import UNMOVED, Alignment, aligned, unaligned
from pipeline.archive import Label
from pipeline.errors import InputError
from pipeline.grid import Grid, ShardCell, Site, zone_crs, zone_number
from pipeline.matching import Points
from pipeline.raster import open_raster, read_on_grid
from pipeline.registration import MAX_POINTS, WINDOW_PX, Coarse, coarse_shift, conclude, tie_points
from pipeline.scene import Scene
from pipeline.sensors import Sensor
from pipeline.shard import Tile

BLOCK_PX = 2048
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


def common_sensors(scenes: Sequence[Scene], known: dict[str, Sensor]) -> dict[str, Sensor]:
    """Return the sensors of `scenes`, each with the bands that every one of its scenes has.

    A sensor that the archive knows already keeps the bands it has there.
    """
    by_sensor: dict[str, list[Scene]] = defaultdict(list)
    for scene in scenes:
        by_sensor[scene.sensor.name].append(scene)
    sensors = {}
    for name, group in by_sensor.items():
        shared = set.intersection(*(set(scene.bands) for scene in group))
        if name in known:
            if missing := set(known[name].band_names) - shared:
                raise InputError(f"scenes of sensor '{name}' lack {sorted(missing)}, which the archive has; use another archive")
            shared = set(known[name].band_names)
        if not shared:
            raise InputError(f"the scenes of sensor '{name}' have no band in common; pass them as separate sensors")
        sensors[name] = group[0].sensor.select(tuple(shared))
    return sensors


def references(
    scenes: Sequence[Scene], sensor_name: str | None, settled: Mapping[str, str | None] | None = None
) -> dict[str, Scene | None]:
    """Return, for each scene id, the scene it is registered to; None for those that stay where they are.

    `settled` says so already for scenes that are in an archive: nothing there is moved by what is added. Otherwise the
    earliest scene of the reference sensor over some ground holds; later ones follow it, and other sensors follow the
    reference scene nearest in time.
    """
    settled = settled or {}
    if sensor_name is None:
        optical = [s for s in scenes if s.sensor.quantity.endswith("reflectance")]
        counts = [scene.sensor.name for scene in (optical or scenes)]
        sensor_name = max(sorted(set(counts)), key=counts.count)
    held = sorted((s for s in scenes if s.sensor.name == sensor_name), key=lambda s: (s.id not in settled, s.time, s.id))
    if not held:
        known = ", ".join(sorted({s.sensor.name for s in scenes}))
        raise InputError(f"reference sensor '{sensor_name}' has no scene here (sensors: {known})")
    by_id = {scene.id: scene for scene in scenes}
    rank = {scene.id: number for number, scene in enumerate(held)}
    tree = STRtree([scene.footprint.geom for scene in held])
    chosen: dict[str, Scene | None] = {}
    for scene in scenes:
        if scene.id in settled:
            chosen[scene.id] = by_id.get(settled[scene.id] or "")
            continue
        near = [held[index] for index in sorted(tree.query(scene.footprint.geom, predicate="intersects"))]
        if scene.id in rank:
            chosen[scene.id] = next((o for o in near if rank[o.id] < rank[scene.id] and _overlap(o, scene) > 0), None)
        else:
            chosen[scene.id] = _best_covering(scene, near)
    return chosen


def _best_covering(scene: Scene, others: list[Scene]) -> Scene | None:
    """Return the scene that covers most of `scene`, in tenths of it, and of several the nearest in time."""
    best, most = None, -1.0
    for other in sorted(others, key=lambda o: abs(o.time - scene.time)):
        share = _overlap(other, scene)
        if share > 0 and round(share, 1) > most:
            best, most = other, round(share, 1)
        if most >= 1:
            break
    return best


def _overlap(first: Scene, second: Scene) -> float:
    return (first.footprint & second.footprint).area / second.footprint.area


class UnreadableReference(Exception):
    """The scene that another is compared with cannot be read."""


@dataclass(frozen=True)
class Comparison:
    """One scene against another whose own alignment is known. Reads at most 2048 x 2048 px of three bands of both at once."""

    scene: Scene
    reference: Scene
    reference_alignment: Alignment
    max_shift_m: float

    @cached_property
    def grid(self) -> GeoBox:
        """The UTM pixels of their overlap at the coarser GSD."""
        overlap = self.scene.footprint & self.reference.footprint
        centre = overlap.centroid.coords[0]
        zone = f"{int(zone_number(centre[0])):02d}{'N' if centre[1] >= 0 else 'S'}"
        gsd = max(self.scene.sensor.gsd_m, self.reference.sensor.gsd_m)
        return GeoBox.from_geopolygon(overlap.to_crs(zone_crs(zone)), resolution=gsd, crs=zone_crs(zone))

    def blocks(self) -> list[tuple[slice, slice]]:
        """Return the windows of `grid` that are compared one by one."""
        rows, columns = (range(0, n, BLOCK_PX) for n in self.grid.shape)
        return [(slice(y, y + BLOCK_PX), slice(x, x + BLOCK_PX)) for y in rows for x in columns]

    @property
    def spacing_px(self) -> int:
        """Distance of the windows measured: so large that a whole scene has about `MAX_POINTS`."""
        return max(WINDOW_PX // 2, int(np.sqrt(self.grid.shape.y * self.grid.shape.x / MAX_POINTS)))

    def coarse(self) -> Coarse:
        """Return the one shift of the whole, seen at no more than 2048 px a side."""
        factor = max(1, -(-max(self.grid.shape) // BLOCK_PX))
        grid = self.grid.zoom_out(factor) if factor > 1 else self.grid
        images = self._whole if len(self.blocks()) == 1 else self._read(grid)
        found = coarse_shift(*images, self.max_shift_m / grid.resolution.x)
        return replace(found, shift_px=found.shift_px * factor)

    def points(self, block: tuple[slice, slice], coarse: Coarse) -> Points:
        """Return the shifts measured in one block, places counted in `grid`."""
        images = self._whole if len(self.blocks()) == 1 else self._read(self.grid[block])
        found = tie_points(*images, coarse, self.spacing_px)
        return replace(found, y=found.y + block[0].start, x=found.x + block[1].start)

    def conclude(self, points: list[Points], coarse: Coarse) -> Alignment:
        return aligned(conclude(Points.join(points), coarse, self.spacing_px), self.grid, self.reference.id)

    @cached_property
    def _whole(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self._read(self.grid)

    def _read(self, geobox: GeoBox) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        try:
            fixed, fixed_valid = read_structure(self.reference, geobox, self.reference_alignment)
        except InputError as error:
            raise UnreadableReference(str(error)) from None
        moving, moving_valid = read_structure(self.scene, geobox)
        return fixed, moving, fixed_valid, moving_valid


def register_scene(comparison: Comparison, each: Callable[..., list[Points]]) -> Alignment:
    """Estimate the scene's displacement; `each(function, blocks, coarse)` may spread the blocks over a cluster.

    An unreadable scene is an InputError; an unreadable reference is not the scene's fault and leaves it where it is.
    """
    if min(comparison.grid.shape) < 32:
        return unaligned(f"overlap with '{comparison.reference.id}' is under 32 pixels")
    try:
        coarse = comparison.coarse()
        return comparison.conclude(each(comparison.points, comparison.blocks(), coarse), coarse)
    except UnreadableReference as error:
        return unaligned(f"its reference {comparison.reference.id} cannot be read ({error})")


def read_structure(scene: Scene, geobox: GeoBox, alignment: Alignment = UNMOVED) -> tuple[np.ndarray, np.ndarray]:
    """Return up to three bands for comparison (band, y, x), and (y, x) bool where they are clear of gaps and cloud."""
    pixels, is_valid = scene.read(geobox, structure_bands(scene), alignment)
    is_cloud, is_gap = scene.read_masks(geobox, alignment)
    return pixels, is_valid & ~is_cloud & ~is_gap


def structure_bands(scene: Scene) -> tuple[str, ...]:
    present = [scene.sensor.band(name) for name in scene.bands]
    known = [band for band in present if band.wavelength_nm is not None]
    if len(present) <= 3 or not known:
        return tuple(band.name for band in present[:3])
    nearest = [min(known, key=lambda b: abs((b.wavelength_nm or 0) - wanted)).name for wanted in STRUCTURE_WAVELENGTHS_NM]
    return tuple(dict.fromkeys(nearest))


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
    alignments: dict[str, Alignment],
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
        alignment = replace(alignments.get(scene.id, unaligned("not compared")), unit_m=grid.site_size_m)
        geobox = grid.geobox(cell, sensor.gsd_m)
        try:
            stored, has_data = scene.read_stored(geobox, sensor, alignment)
            is_cloud, is_gap = scene.read_masks(geobox, alignment)
        except InputError as error:
            refused[scene.id] = str(error)
            continue
        is_clear = has_data & ~is_cloud & ~is_gap
        stored[:, ~is_clear] = 0
        size = sensor.tile_shape(grid.site_size_m)[0]
        for site, i, j in places:
            window = (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
            if is_clear[window].mean() < min_valid_fraction:
                continue
            pieces = stored[:, *window], is_clear[window], is_cloud[window]
            tiles.append(_tile(scene, sensor, site, grid, *pieces, alignment, _current_labels(classes, scene.time, site)))
    return _ranked(tiles), refused


def _tile(
    scene: Scene,
    sensor: Sensor,
    site: Site,
    grid: Grid,
    pixels: np.ndarray,
    is_valid: np.ndarray,
    is_cloud: np.ndarray,
    alignment: Alignment,
    labels: dict[str, float],
) -> Tile:
    bounds = grid.site_bounds(site)
    centre = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
    return Tile(
        sensor=sensor.name,
        site=site.id,
        pixels=pixels,
        is_valid=is_valid,
        time=scene.time,
        order=0,
        scene=scene.id,
        crs=zone_crs(site.zone),
        transform=(sensor.gsd_m, 0.0, bounds.left, 0.0, -sensor.gsd_m, bounds.top),
        geometry=bounds.polygon.to_crs("EPSG:4326").geom,
        registration=alignment.at(*centre, zone_crs(site.zone)),
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
