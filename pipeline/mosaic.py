"""Scenes of one ground as one image of each sensor, read window by window on grids that fit cell by cell.

Decides which scene is seen where several of a sensor overlap (the latest that is clear) and which CRS and origin all have: those
of the finest scene where it has metres, else its UTM zone. Reading and units are `scene`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import Transformer

from pipeline.blend import Span
from pipeline.dates import SECONDS_PER_DAY
from pipeline.errors import InputError
from pipeline.grid import zone_crs, zone_number
from pipeline.raster import open_raster
from pipeline.scene import Scene
from pipeline.sensors import Sensor


@dataclass(frozen=True)
class Ground:
    """Square cells of `cell_m` metres from the north-west corner (left, top) of `crs`; shape (y, x) in cells."""

    crs: str
    left: float
    top: float
    cell_m: float
    shape: tuple[int, int]

    def geobox(self, span: Span, pixel_m: float) -> GeoBox:
        """Return the pixel grid of some cells."""
        (y, x), scale = span.start, round(self.cell_m / pixel_m)
        transform = Affine(pixel_m, 0, self.left + x * self.cell_m, 0, -pixel_m, self.top - y * self.cell_m)
        return GeoBox((span.shape[0] * scale, span.shape[1] * scale), transform, self.crs)

    @property
    def whole(self) -> Span:
        return Span((0, 0), self.shape)

    def lonlat_deg(self, spans: Sequence[Span]) -> np.ndarray:
        """Return (N, 2) longitudes and latitudes of the middles of some cells."""
        x = [self.left + (span.start[1] + span.stop[1]) / 2 * self.cell_m for span in spans]
        y = [self.top - (span.start[0] + span.stop[0]) / 2 * self.cell_m for span in spans]
        return np.stack(Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True).transform(x, y), 1)


@dataclass(frozen=True)
class Mosaic:
    """The scenes of one sensor, the one seen first at the front."""

    sensor: Sensor
    scenes: tuple[Scene, ...]

    def read(self, geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (band, y, x) float32 in the sensor's unit and (y, x) bool where any scene is clear."""
        pixels = np.zeros((len(self.sensor.bands), *geobox.shape), np.float32)
        is_known = np.zeros(geobox.shape, bool)
        outline = geobox.extent.to_crs("EPSG:4326")
        for scene in self.scenes:
            if is_known.all():
                break
            if not scene.footprint.intersects(outline):
                continue
            found, is_valid = scene.read(geobox, self.sensor.band_names)
            is_cloud, is_gap = scene.read_masks(geobox)
            is_new = is_valid & ~is_cloud & ~is_gap & ~is_known
            np.copyto(pixels, found, where=is_new)
            is_known |= is_new
        return pixels, is_known

    @property
    def time_days(self) -> float:
        """Days since 1970-01-01 of the scene at the front."""
        return self.scenes[0].time.timestamp() / SECONDS_PER_DAY


def mosaics(scenes: Sequence[Scene], sensors: Sequence[str]) -> dict[str, Mosaic]:
    """Return the mosaic of each of `sensors` that has scenes, the latest scene at the front."""
    found = {}
    for name in sensors:
        own = sorted((scene for scene in scenes if scene.sensor.name == name), key=lambda scene: (scene.time, scene.id))
        if own:
            found[name] = Mosaic(own[0].sensor, tuple(reversed(own)))
    if not found:
        known = ", ".join(sorted({scene.sensor.name for scene in scenes}))
        raise InputError(f"the scenes are of {known}, expected one of {', '.join(sensors)}; give others, or say --sensor")
    return found


def ground_of(mosaics: dict[str, Mosaic], cell_m: float, least: int) -> Ground:
    """Return cells over all that the scenes cover, at least `least` along each side."""
    finest = min(mosaics.values(), key=lambda mosaic: mosaic.sensor.gsd_m).scenes[0]
    crs, left, top = _origin(finest)
    outlines = [_bounds(scene.footprint, crs) for mosaic in mosaics.values() for scene in mosaic.scenes]
    # A hundredth of a cell is rounding: outlines come as longitudes and latitudes.
    west = math.floor((min(b[0] for b in outlines) - left) / cell_m + 0.01)
    north = math.floor((top - max(b[3] for b in outlines)) / cell_m + 0.01)
    east = math.ceil((max(b[2] for b in outlines) - left) / cell_m - 0.01)
    south = math.ceil((top - min(b[1] for b in outlines)) / cell_m - 0.01)
    shape = (max(least, south - north), max(least, east - west))
    return Ground(crs, left + west * cell_m, top - north * cell_m, cell_m, shape)


def _origin(scene: Scene) -> tuple[str, float, float]:
    """Return CRS and north-west corner of a scene's file if it is in metres, else of its footprint in its UTM zone."""
    asset = scene.assets[0]
    if asset.variable is None:
        with open_raster(asset.href) as source:
            if source.crs is not None and source.crs.is_projected and source.crs.linear_units_factor[1] == 1:
                return str(source.crs), source.bounds.left, source.bounds.top
    centre = scene.footprint.centroid
    crs = zone_crs(f"{int(zone_number(centre.coords[0][0])):02d}{'N' if centre.coords[0][1] >= 0 else 'S'}")
    left, _, _, top = _bounds(scene.footprint, crs)
    return crs, left, top


def _bounds(footprint: Geometry, crs: str) -> tuple[float, float, float, float]:
    bounds = footprint.to_crs(crs, resolution=0.1).boundingbox
    return bounds.left, bounds.bottom, bounds.right, bounds.top
