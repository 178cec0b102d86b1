"""Render a synthetic planet into the raw scenes of four sensors, with everything that is true about them beside it.

This file decides when and where each sensor looks, the physics between ground and stored number (sun, haze, clouds,
speckle, resolution), how far each scene is misplaced, and the files. Where things lie on the ground is in `planet.py`,
what they look like in `materials.py`, how numbers are stored in the sensors' own YAML.

Misplacement: `shift_x_m`, `shift_y_m` must be *added* to a scene's stated map coordinates, in metres east and north in
the planet's UTM frame, to get the true ones.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pyproj import CRS, Transformer
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window
from scipy import ndimage, sparse

from pipeline.errors import InputError
from pipeline.materials import backscatter_table, reflectance_table
from pipeline.planet import CLASSES, FINE_M, HEIGHT_STEP_M, TONE_ONE, TRUTH_M, Planet, Surface, block_sum, noise
from pipeline.sensors import Sensor, load_sensor

YEAR = 2023
"""In which land cover changes."""
CHANGE_DAY = 196
SNAP_M = 640  # planets start on whole sites of this size
INCIDENCE_DEG = 39.0
LOOKS = 4.5
CLOUD_HEIGHT_M = 1200.0
MAX_SHIFT_PX = 1.5
STRIP = 256  # scene rows rendered and written at once


class SimulateConfig(BaseModel):
    """A synthetic planet. Everything follows from these numbers; the same numbers give the same pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    """Seed of the planet and of every scene."""
    size_m: int = Field(15360, ge=1280)
    """Edge of the square planet, metres; a multiple of 640."""
    lon: float = Field(11.0, ge=-180, lt=180)
    """Longitude of the centre, degrees east."""
    lat: float = Field(47.8, ge=25, le=65)
    """Latitude of the centre, degrees north (seasons are those of the northern temperate zone)."""
    optical: Literal["sentinel2_l2a", "sentinel2_l1c"] = "sentinel2_l2a"
    """Which Sentinel-2 product the optical satellite delivers."""
    satellite_dates: int = Field(4, ge=1, le=24)
    """Acquisitions per satellite sensor, spread from April to December."""
    aerial_dates: int = Field(1, ge=0, le=2)
    """Aerial campaigns: the first before, the second after the land-cover changes."""
    max_shift_m: float = Field(15.0, ge=0)
    """Largest geolocation error of a scene, metres; never more than 1.5 pixels of the sensor."""
    num_changes: int = Field(6, ge=0)
    """True land-cover changes, all in mid July."""
    cloud_cover: float = Field(0.12, ge=0, le=0.6)
    """Mean cloud fraction of the optical satellite scenes; the first is nearly clear."""
    year: int = Field(YEAR, ge=1990, le=2100)
    """Of the acquisitions: another one gives new scenes of the same planet; its land cover changes in July 2023."""

    @model_validator(mode="after")
    def _check(self) -> "SimulateConfig":
        if self.size_m % SNAP_M:
            raise ValueError(f"size_m {self.size_m} is not a multiple of {SNAP_M}; take {round(self.size_m / SNAP_M) * SNAP_M}")
        return self


@dataclass(frozen=True)
class Frame:
    """The planet's place on Earth: UTM zone and north-west corner."""

    crs: CRS
    west_m: float
    north_m: float
    size_m: float

    @classmethod
    def at(cls, config: SimulateConfig) -> "Frame":
        crs = CRS.from_epsg(32601 + int((config.lon + 180) // 6))
        x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(config.lon, config.lat)
        west, south = (round((c - config.size_m / 2) / SNAP_M) * SNAP_M for c in (x, y))
        return cls(crs, west, south + config.size_m, config.size_m)

    def transform(self, gsd_m: float) -> Affine:
        return from_origin(self.west_m, self.north_m, gsd_m, gsd_m)


@dataclass(frozen=True)
class Grid:
    """The stated pixel grid of one scene and the polynomials that say where its pixels truly lie on the planet.

    Map projections are smooth over a planet: degree 4 in row and column is exact to millimetres.
    """

    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    to_planet_m: tuple[np.ndarray, np.ndarray]

    @classmethod
    def over(
        cls,
        frame: Frame,
        crs: CRS,
        gsd_m: float,
        extent: tuple[float, float, float, float],
        shift_m: tuple[float, float],
    ) -> "Grid":
        """Cover `extent` (west, south, east, north as shares of the planet) with ground pixels of about `gsd_m`."""
        west, south, east, north = extent
        forward = Transformer.from_crs(frame.crs, crs, always_xy=True)
        edge = np.linspace(0, 1, 21)
        share_x, share_y = (a.ravel() for a in np.meshgrid(west + (east - west) * edge, south + (north - south) * edge))
        base_x, base_y = frame.west_m + share_x * frame.size_m, frame.north_m - (1 - share_y) * frame.size_m
        x, y = forward.transform(base_x, base_y)
        middle = base_x.mean(), base_y.mean()
        step = [
            np.array(forward.transform(middle[0] + dx, middle[1] + dy)) for dx, dy in ((-500, 0), (500, 0), (0, -500), (0, 500))
        ]
        size_x, size_y = (gsd_m * np.abs(step[2 * k + 1] - step[2 * k])[k] / 1000 for k in (0, 1))
        if crs.is_projected and crs.utm_zone:
            size_x = size_y = gsd_m
        left, top = np.floor(x.min() / size_x + 1e-6) * size_x, np.ceil(y.max() / size_y - 1e-6) * size_y
        shape = int(np.ceil((top - y.min()) / size_y - 1e-6)), int(np.ceil((x.max() - left) / size_x - 1e-6))
        transform = Affine(size_x, 0, left, 0, -size_y, top)
        knots = np.cos(np.linspace(0, np.pi, 9))
        row, column = (a.ravel() for a in np.meshgrid(knots, knots, indexing="ij"))
        stated = left + (column + 1) / 2 * shape[1] * size_x, top - (row + 1) / 2 * shape[0] * size_y
        true_x, true_y = forward.transform(*stated, direction="INVERSE")
        design = np.polynomial.polynomial.polyvander2d(row, column, (4, 4))
        to_planet = tuple(
            np.linalg.lstsq(design, metres, rcond=None)[0].reshape(5, 5)
            for metres in (frame.north_m - (true_y + shift_m[1]), true_x + shift_m[0] - frame.west_m)
        )
        return cls(crs, transform, shape, to_planet)

    def planet_m(self, rows: slice) -> np.ndarray:
        """Return true metres south and east of the planet's north-west corner, (2, row, column), of pixel centres."""
        row = np.polynomial.polynomial.polyvander((np.arange(rows.start, rows.stop) + 0.5) * 2 / self.shape[0] - 1, 4)
        column = np.polynomial.polynomial.polyvander((np.arange(self.shape[1]) + 0.5) * 2 / self.shape[1] - 1, 4)
        return np.stack([row @ table @ column.T for table in self.to_planet_m])


@dataclass(frozen=True)
class Acquisition:
    """One pass of one sensor: one sky and one ground, cut into one scene per extent."""

    sensor: Sensor
    time: datetime
    crs: CRS
    extents: tuple[tuple[float, float, float, float], ...] = ((0, 0, 1, 1),)
    swath: float | None = None
    """Where a slanted swath edge cuts the planet, as a share of its width; pixels beyond have no data."""
    swath_side: Literal["east", "west"] = "east"
    number: int = 0

    @property
    def day(self) -> int:
        return self.time.timetuple().tm_yday

    def scene_ids(self) -> list[str]:
        stem = f"{self.sensor.name}_{self.time:%Y%m%dT%H%M%S}"
        return [stem] if len(self.extents) == 1 else [f"{stem}_{chr(ord('a') + k)}" for k in range(len(self.extents))]


def acquisitions(config: SimulateConfig, frame: Frame) -> list[Acquisition]:
    """Say which sensor looks when, in which map projection and how much of the planet it sees."""
    optical, radar, aerial, dsm = (load_sensor(n) for n in (config.optical, "sentinel1_grd", "rgb_aerial", "dsm"))
    zone = frame.crs.utm_zone
    neighbour = CRS.from_epsg(32600 + (int(zone[:-1]) % 60 + 1)) if zone else frame.crs
    passes = []
    for number in range(config.satellite_dates):
        day = 95 + 274 * number / config.satellite_dates
        halves = ((0, 0, 0.6, 1), (0.4, 0, 1, 1)) if number % 4 == 1 else ((0, 0, 1, 1),)
        passes.append(
            Acquisition(
                optical, _moment(config.year, day, 10.5), frame.crs, halves, 0.85 if number % 4 == 2 else None, "east", number
            )
        )
        evening, edge = number % 2 == 1, 0.12 if number % 4 == 1 else None
        passes.append(
            Acquisition(
                radar,
                _moment(config.year, day + 2, 17.1 if evening else 5.4),
                neighbour,
                swath=edge,
                swath_side="west",
                number=number,
            )
        )
    for number in range(config.aerial_dates):
        halves = ((0, 0.45, 1, 1), (0, 0, 1, 0.55))  # type: ignore[assignment]
        passes.append(Acquisition(aerial, _moment(config.year, 172 + 60 * number, 9.5), CRS.from_epsg(3857), halves, number=number))
    passes.append(Acquisition(dsm, _moment(config.year, 110, 9.0), CRS.from_epsg(4326)))
    return passes


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
    _write_truth(out / "truth", planet, frame)
    scenes: dict[str, dict[str, Any]] = {}
    for acquisition in acquisitions(config, frame):
        scenes |= render(acquisition, planet, frame, config, out / "scenes")
    _write_text(out / "truth" / "scenes.json", json.dumps(scenes, indent=1))
    shares = np.bincount(planet.before.classes.ravel(), minlength=len(CLASSES)) / planet.before.classes.size
    summary = {
        "crs": f"EPSG:{frame.crs.to_epsg()}",
        "bounds_m": [frame.west_m, frame.north_m - frame.size_m, frame.west_m + frame.size_m, frame.north_m],
        "scenes": sorted(scenes),
        "classes": {name: round(float(share), 4) for name, share in zip(CLASSES, shares)},
        "num_changes": len(planet.changes),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    _write_text(finished, json.dumps({"config": wanted, "summary": summary}, indent=1))
    started.unlink()
    return summary


def render(
    acquisition: Acquisition, planet: Planet, frame: Frame, config: SimulateConfig, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write one acquisition's scenes under `folder`; return {scene id: truth}. Draws depend on nothing but seed and scene."""
    sensor = acquisition.sensor
    year = "" if config.year == YEAR else f" {config.year}"
    sky = _generator(config.seed, f"{sensor.name} {acquisition.number}{year}")
    surface = planet.before if acquisition.time < _moment(YEAR, CHANGE_DAY, 0) else planet.after
    is_optical = sensor.quantity.endswith("reflectance")
    clouds = _Clouds.drawn(sky, planet, acquisition, config) if is_optical else None
    if clouds is not None:
        sample = _sampler(_optical_image(sky, acquisition, planet, surface, clouds), TRUTH_M, order=2)
    elif sensor.quantity == "sigma0":
        sample = _sampler(_radar_image(sky, acquisition, planet, surface), TRUTH_M, order=2)
    elif sensor.quantity == "height":
        sample = _sampler(_height_image(planet, surface), 2 * FINE_M, order=1)
    else:
        sample = _sampler(_aerial_image(sky, acquisition, planet, surface), FINE_M, order=1)
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
        _write_scene(folder / f"{scene_id}.tif", stored, acquisition, grid, planet.size_m, sample, draw)
        truth[scene_id] = {
            "sensor": sensor.name,
            "time": acquisition.time.isoformat(),
            "shift_x_m": shift[0],
            "shift_y_m": shift[1],
        }
        truth[scene_id]["cloud_fraction"] = 0.0
        if clouds is not None:
            truth[scene_id]["cloud_fraction"] = _write_mask(
                folder / f"{scene_id}_cloud.tif", acquisition, grid, planet.size_m, clouds
            )
    return truth


@dataclass(frozen=True)
class _Clouds:
    """Opacity of clouds and of their shadows (0-1) on the 10 m grid."""

    cloud: np.ndarray
    shadow: np.ndarray

    @classmethod
    def drawn(cls, generator: np.random.Generator, planet: Planet, acquisition: Acquisition, config: SimulateConfig) -> "_Clouds":
        shape = planet.elevation_m.shape
        cover = config.cloud_cover * (0.15 if acquisition.number == 0 else generator.uniform(0.5, 1.6))
        field = noise(generator, shape, min(2500, planet.size_m / 2) / TRUTH_M, 2.4)
        base = np.quantile(field, 1 - cover)
        cloud = np.clip((field - base) / 0.35, 0, 1) if cover else np.zeros(shape)
        # The noise is periodic, so rolling it brings in the shadows of clouds beyond the edge.
        azimuth, elevation = sun_position(acquisition.time, config.lat, config.lon)
        away_px = CLOUD_HEIGHT_M / np.tan(elevation) / TRUTH_M
        steps = round(away_px * np.cos(azimuth)), -round(away_px * np.sin(azimuth))
        return cls(cloud.astype(np.float32), np.roll(cloud, steps, (0, 1)).astype(np.float32))


def sun_position(when: datetime, lat: float, lon: float) -> tuple[float, float]:
    """Return azimuth (clockwise from north) and elevation of the sun, radians, to about a degree (no equation of time)."""
    declination = np.radians(-23.44) * np.cos(2 * np.pi * (when.timetuple().tm_yday + 10) / 365)
    hour_angle = np.radians((when.hour + when.minute / 60 + lon / 15 - 12) * 15)
    phi = np.radians(lat)
    elevation = np.arcsin(np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle))
    azimuth = np.pi + np.arctan2(np.sin(hour_angle), np.cos(hour_angle) * np.sin(phi) - np.tan(declination) * np.cos(phi))
    return float(azimuth), float(max(elevation, np.radians(8)))


def _normals(elevation_m: np.ndarray, gsd_m: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit surface normals (east, north, up)."""
    south, east = np.gradient(ndimage.gaussian_filter(elevation_m, 1.5), gsd_m)
    length = np.sqrt(1 + south**2 + east**2)
    return -east / length, south / length, 1 / length


def _blend(surface: Surface, table: np.ndarray, tone: np.ndarray | None) -> np.ndarray:
    """Return table rows averaged over the fine cells of each 10 m cell, weighted by tone: (band, y, x)."""
    height, width = surface.classes.shape
    result = np.empty((table.shape[1], height, width), np.float32)
    for top in range(0, height, 128):
        rows = slice(top * 4, min(top + 128, height) * 4)
        codes, weights = (
            a[rows].reshape(-1, 4, width, 4).swapaxes(1, 2).ravel() for a in (surface.code, surface.code if tone is None else tone)
        )
        share = np.full(codes.size, 1 / 16, np.float32) if tone is None else weights.astype(np.float32) / (16 * TONE_ONE)
        mix = sparse.csr_array((share, codes.astype(np.int32), np.arange(0, codes.size + 1, 16)), (codes.size // 16, len(table)))
        result[:, top : top + 128] = (mix @ table).T.reshape(table.shape[1], -1, width)
    return result


def _optical_image(
    sky: np.random.Generator, acquisition: Acquisition, planet: Planet, surface: Surface, clouds: _Clouds
) -> np.ndarray:
    """Return reflectance (band, y, x) at 10 m: ground, terrain light, haze, clouds, atmosphere, then each band's own blur."""
    sensor = acquisition.sensor
    wavelengths_nm = np.array([band.wavelength_nm for band in sensor.bands], dtype=float)
    image = _blend(surface, reflectance_table(wavelengths_nm, acquisition.day), surface.tone)
    azimuth, elevation = sun_position(acquisition.time, 47.8, 11.0)
    east, north, up = _normals(planet.elevation_m, TRUTH_M)
    cosine = (east * np.sin(azimuth) + north * np.cos(azimuth)) * np.cos(elevation) + up * np.sin(elevation)
    light = 1 + 0.75 * (np.clip(cosine, 0.05, None) / np.sin(elevation) - 1)
    image *= light * (1 - 0.55 * clouds.shadow)
    gain = sky.uniform(0.9, 1.1) * sky.normal(1, 0.015, len(wavelengths_nm))
    haze = sky.uniform(0.0, 0.03) * (1 + 0.35 * noise(sky, light.shape, 600, 3))
    cloud_white = np.interp(wavelengths_nm, (443, 900, 1600, 2200), (0.72, 0.66, 0.42, 0.3))
    thickness = clouds.cloud * (0.9 + 0.1 * noise(sky, light.shape, 40, 2))
    is_top = sensor.quantity == "toa_reflectance"
    micron = wavelengths_nm / 1000
    rayleigh = 0.0088 * micron**-4.05 / (4 * np.sin(elevation)) if is_top else np.zeros(len(micron))
    gas = np.interp(wavelengths_nm, (443, 900, 945, 980, 1300, 1373, 1450, 1600), (0.98, 0.97, 0.45, 0.95, 0.95, 0.004, 0.95, 0.97))
    cirrus = 0.004 * np.exp(noise(sky, light.shape, 300, 2.5)) if is_top else np.zeros(1, np.float32)
    for k, band in enumerate(sensor.bands):
        plane = image[k] * gain[k] * (1 - 1.2 * rayleigh[k]) + haze * (wavelengths_nm[k] / 490) ** -1.6 + rayleigh[k]
        plane += thickness * (cloud_white[k] - plane)
        plane = (plane * gas[k] if is_top else plane) + cirrus
        image[k] = ndimage.gaussian_filter(plane, 0.42 * band.gsd_m / TRUTH_M, truncate=2.5, mode="nearest")
    return image


def _radar_image(sky: np.random.Generator, acquisition: Acquisition, planet: Planet, surface: Surface) -> np.ndarray:
    """Return expected backscatter (VV, VH; y, x) in linear power at 10 m, without speckle."""
    season_db = 1.2 * np.cos(2 * np.pi * (acquisition.day - 30) / 365)
    table = backscatter_table(acquisition.day, season_db + sky.uniform(-0.8, 0.8), sky.uniform(-2, 6))
    image = _blend(surface, table, None)
    parcels_db = 2.2 * (block_sum(surface.tone, 4) / (16 * TONE_ONE) - 1) * 10**0.5
    # A right-looking radar sees east from an ascending (evening) orbit, west from a descending (morning) one.
    look = np.radians(80 if acquisition.number % 2 else 280)
    east, north, up = _normals(planet.elevation_m, TRUTH_M)
    incidence = np.radians(INCIDENCE_DEG)
    cosine = up * np.cos(incidence) - (east * np.sin(look) + north * np.cos(look)) * np.sin(incidence)
    sine = np.sqrt(np.clip(1 - cosine**2, 0.02, None))
    # Foreshortening packs more ground into a pixel on facing slopes; slopes turned away fall into shadow.
    terrain = np.clip(np.sin(incidence) / sine, 0.3, 5) * np.clip(cosine / np.cos(incidence), 0.02, 1.6)
    return image * terrain * 10 ** (parcels_db / 10)


def _height_image(planet: Planet, surface: Surface) -> np.ndarray:
    """Return the height of the surface above sea level (1, y, x) at 5 m."""
    ground = ndimage.zoom(planet.elevation_m, 2, order=1, grid_mode=True, mode="nearest")
    return (ground + block_sum(surface.height, 2) * (HEIGHT_STEP_M / 4))[None]


def _aerial_image(sky: np.random.Generator, acquisition: Acquisition, planet: Planet, surface: Surface) -> np.ndarray:
    """Return film-like 8-bit colour (band, y, x) on the 2.5 m grid, with the shadows of trees and houses."""
    wavelengths_nm = np.array([band.wavelength_nm for band in acquisition.sensor.bands], dtype=float)
    table = reflectance_table(wavelengths_nm, acquisition.day)
    azimuth, elevation = sun_position(acquisition.time, 47.8, 11.0)
    exposure, haze = sky.uniform(2.6, 3.4), np.array([0.004, 0.008, 0.016]) * sky.uniform(0.5, 1.5)
    curve = [
        (255 * np.clip(exposure * (table[:, k, None] * np.arange(256) / TONE_ONE * tint + haze[k]), 0, 1) ** (1 / 1.7))
        for k in range(3)
        for tint in (1.0, (0.38, 0.42, 0.5)[k])
    ]
    film = np.rint(np.stack(curve)).astype(np.uint8).reshape(3, 2, -1)  # band, lit or shaded, code x tone
    image = np.empty((3, *surface.code.shape), np.uint8)
    reach = int(40 / np.tan(elevation) / FINE_M) + 2
    drop = np.tan(elevation) * FINE_M / HEIGHT_STEP_M
    for top in range(0, surface.code.shape[0], STRIP):
        rows = slice(top, min(top + STRIP, surface.code.shape[0]))
        height = np.pad(
            surface.height[max(top - reach, 0) : rows.stop + reach].astype(np.int16),
            ((0, 0), (reach, reach)),
            mode="edge",
        )
        height = np.pad(height, ((max(reach - top, 0), max(rows.stop + reach - surface.code.shape[0], 0)), (0, 0)), mode="edge")
        own = height[reach:-reach, reach:-reach]
        is_shaded = np.zeros(own.shape, bool)
        for step in range(1, reach):
            dy, dx = reach - round(step * np.cos(azimuth)), reach + round(step * np.sin(azimuth))
            caster = height[dy : dy + own.shape[0], dx : dx + own.shape[1]]
            is_shaded |= caster - own > int(step * drop)
        entry = (surface.code[rows].astype(np.int32) << 8) + surface.tone[rows]
        for k in range(3):
            image[k, rows] = np.where(is_shaded, film[k, 1][entry], film[k, 0][entry])
    return image


Sampler = Callable[[np.ndarray], np.ndarray]


def _sampler(image: np.ndarray, gsd_m: float, order: int) -> Sampler:
    """Return a function from planet metres (2, row, column) to image values (band, row, column), by spline of `order`."""
    planes = [ndimage.spline_filter(p, order, output=np.float32, mode="nearest") for p in image] if order > 1 else list(image)

    def sample(planet_m: np.ndarray) -> np.ndarray:
        position = planet_m / gsd_m - 0.5
        values = np.empty((len(planes), *position.shape[1:]), np.float32)
        for plane, value in zip(planes, values):
            ndimage.map_coordinates(plane, position, value, order, mode="nearest", prefilter=False)
        return values

    return sample


def _is_seen(planet_m: np.ndarray, acquisition: Acquisition, size_m: float) -> np.ndarray:
    """True where a pixel lies on the planet and inside the swath, whose edge slants like a polar orbit (about 12 degrees)."""
    south, east = planet_m
    is_seen = (south >= 0) & (south < size_m) & (east >= 0) & (east < size_m)
    if acquisition.swath is not None:
        beyond_m = east - acquisition.swath * size_m + (south - size_m / 2) * np.tan(np.radians(12))
        is_seen &= beyond_m < 0 if acquisition.swath_side == "east" else beyond_m > 0
    return is_seen


def _strips(shape: tuple[int, int]) -> Iterator[slice]:
    for top in range(0, shape[0], STRIP):
        yield slice(top, min(top + STRIP, shape[0]))


def _write_scene(
    path: Path,
    sensor: Sensor,
    acquisition: Acquisition,
    grid: Grid,
    size_m: float,
    sample: Sampler,
    draw: np.random.Generator,
) -> None:
    """Sample, add the detector's own noise, store as the sensor's dtype; unseen pixels hold the file's nodata value."""
    nodata = -32768 if sensor.dtype == "int16" else 0
    with _geotiff(path, grid, len(sensor.bands), sensor.dtype, nodata) as file:
        file.descriptions = sensor.band_names
        file.scales, file.offsets = (sensor.scale,) * file.count, (sensor.offset,) * file.count
        file.update_tags(SENSOR=sensor.name, DATETIME=acquisition.time.isoformat())
        for rows in _strips(grid.shape):
            planet_m = grid.planet_m(rows)
            counts = sensor.to_stored(_detect(sample(planet_m), sensor, draw))
            np.maximum(counts, nodata + 1, out=counts)
            is_seen = _is_seen(planet_m, acquisition, size_m)
            if not is_seen.all():
                counts[:, ~is_seen] = nodata
            file.write(counts, window=Window(0, rows.start, grid.shape[1], rows.stop - rows.start))


def _detect(physical: np.ndarray, sensor: Sensor, draw: np.random.Generator) -> np.ndarray:
    """Add noise: speckle of LOOKS looks to radar power (returned in dB), photon and read noise elsewhere."""
    if sensor.quantity == "sigma0":
        speckle = draw.standard_gamma(LOOKS, physical.shape, dtype=np.float32) / LOOKS
        return 10 * np.log10(np.maximum(physical, 1e-4) * speckle + 1e-6)
    if sensor.quantity == "digital_number":  # film grain: one pattern for all colours
        return physical + 1.5 * draw.standard_normal(physical.shape[1:], dtype=np.float32)
    white = draw.standard_normal(physical.shape, dtype=np.float32)
    if sensor.quantity == "height":
        return physical + 0.15 * white
    return np.maximum(physical + (0.0012 + 0.008 * np.abs(physical)) * white, 0)


def _write_mask(path: Path, acquisition: Acquisition, grid: Grid, size_m: float, clouds: _Clouds) -> float:
    """Write 0 clear, 1 cloud, 2 cloud shadow; return the cloud fraction of the pixels seen."""
    sample = _sampler(np.stack([clouds.cloud, clouds.shadow]), TRUTH_M, order=1)
    num_seen = num_cloudy = 0
    with _geotiff(path, grid, 1, "uint8", None) as file:
        file.update_tags(DATETIME=acquisition.time.isoformat())
        for rows in _strips(grid.shape):
            planet_m = grid.planet_m(rows)
            cloud, shadow = sample(planet_m) > 0.2
            is_seen = _is_seen(planet_m, acquisition, size_m)
            mask = np.where(cloud, 1, np.where(shadow, 2, 0)) * is_seen
            file.write(mask.astype(np.uint8), 1, window=Window(0, rows.start, grid.shape[1], rows.stop - rows.start))
            num_seen, num_cloudy = num_seen + int(is_seen.sum()), num_cloudy + int((cloud & is_seen).sum())
    return round(num_cloudy / max(num_seen, 1), 4)


def _write_truth(folder: Path, planet: Planet, frame: Frame) -> None:
    grid = Grid(frame.crs, frame.transform(TRUTH_M), planet.elevation_m.shape, (np.zeros(0), np.zeros(0)))
    epochs = {_moment(YEAR, 1, 0): planet.before} | ({_moment(YEAR, CHANGE_DAY, 0): planet.after} if planet.changes else {})
    for since, surface in epochs.items():
        with _geotiff(folder / f"landcover_{since:%Y%m%d}.tif", grid, 1, "uint8", 255) as file:
            file.update_tags(CLASSES=json.dumps(CLASSES), DATETIME=since.isoformat())
            file.write(surface.classes, 1)
    with _geotiff(folder / "elevation.tif", grid, 1, "float32", None) as file:
        file.write(planet.elevation_m, 1)
    features = [
        {
            "type": "Feature",
            "geometry": geometry,
            "properties": {
                "kind": change.kind,
                "before": CLASSES[change.before],
                "after": CLASSES[change.after],
                "time": _moment(YEAR, CHANGE_DAY, 0).isoformat(),
            },
        }
        for change in planet.changes
        for geometry in change.polygons(grid.transform)
    ]
    name = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{frame.crs.to_epsg()}"}}
    collection = {"type": "FeatureCollection", "crs": name, "features": features}
    _write_text(folder / "changes.geojson", json.dumps(collection))


class _geotiff:
    """A tiled GeoTIFF open for writing under a temporary name, that takes its own name only once complete."""

    def __init__(self, path: Path, grid: Grid, num_bands: int, dtype: str, nodata: float | None) -> None:
        self._path, self._partial = path, path.with_suffix(".partial")
        height, width = grid.shape
        self._file = rasterio.open(
            self._partial, "w", driver="GTiff", height=height, width=width, count=num_bands, dtype=dtype, nodata=nodata,
            crs=grid.crs.to_wkt(), transform=grid.transform, tiled=True, blockxsize=256, blockysize=256, interleave="band",
            compress="deflate", zlevel=1, predictor=3 if dtype == "float32" else 2, num_threads=2,
        )  # fmt: skip

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, failure: Any, *_: Any) -> None:
        self._file.close()
        if failure is None:
            self._partial.rename(self._path)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)


def _moment(year: int, day: float, hour: float) -> datetime:
    return datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=int(day) - 1, hours=hour)


def _generator(seed: int, name: str) -> np.random.Generator:
    """Return the stream of one named thing, the same whatever else is drawn."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
