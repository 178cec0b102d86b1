"""The physics between ground and sensor: sun, haze, clouds, terrain, resolution, and the detector's noise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

from pipeline.sensors import Sensor
from pipeline.simulation.acquisitions import Acquisition, Sun
from pipeline.simulation.materials import backscatter_table, reflectance_table
from pipeline.simulation.planet import FINE_M, HEIGHT_STEP_M, TONE_ONE, TRUTH_M, Planet, Surface, block_sum, noise

INCIDENCE_DEG = 39.0
LOOKS = 4.5
CLOUD_HEIGHT_M = 1200.0
STRIP = 256
"""Rows rendered and written at once."""


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield rows of an image, STRIP at a time."""
    for top in range(0, shape[0], STRIP):
        yield slice(top, min(top + STRIP, shape[0]))


@dataclass(frozen=True)
class Clouds:
    """Opacity of clouds and of their shadows (0-1) on the 10 m grid."""

    cloud: np.ndarray
    shadow: np.ndarray

    @classmethod
    def drawn(cls, generator: np.random.Generator, planet: Planet, cover: float, sun: Sun) -> "Clouds":
        """Draw clouds over a share `cover` of the planet."""
        shape = planet.elevation_m.shape
        field = noise(generator, shape, min(2500, planet.size_m / 2) / TRUTH_M, 2.4)
        base = np.quantile(field, 1 - cover)
        cloud = np.clip((field - base) / 0.35, 0, 1) if cover else np.zeros(shape)
        # The noise is periodic, so rolling it brings in the shadows of clouds beyond the edge.
        away_px = CLOUD_HEIGHT_M / np.tan(sun.elevation) / TRUTH_M
        steps = round(away_px * np.cos(sun.azimuth)), -round(away_px * np.sin(sun.azimuth))
        return cls(cloud.astype(np.float32), np.roll(cloud, steps, (0, 1)).astype(np.float32))


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


def optical_image(
    sky: np.random.Generator, acquisition: Acquisition, planet: Planet, surface: Surface, clouds: Clouds, sun: Sun
) -> np.ndarray:
    """Return reflectance (band, y, x) at 10 m: ground, terrain light, haze, clouds, atmosphere, then each band's own blur."""
    sensor = acquisition.sensor
    wavelengths_nm = np.array([band.wavelength_nm for band in sensor.bands], dtype=float)
    image = _blend(surface, reflectance_table(wavelengths_nm, acquisition.day), surface.tone)
    east, north, up = _normals(planet.elevation_m, TRUTH_M)
    cosine = (east * np.sin(sun.azimuth) + north * np.cos(sun.azimuth)) * np.cos(sun.elevation) + up * np.sin(sun.elevation)
    light = 1 + 0.75 * (np.clip(cosine, 0.05, None) / np.sin(sun.elevation) - 1)
    image *= light * (1 - 0.55 * clouds.shadow)
    gain = sky.uniform(0.9, 1.1) * sky.normal(1, 0.015, len(wavelengths_nm))
    haze = sky.uniform(0.0, 0.03) * (1 + 0.35 * noise(sky, light.shape, 600, 3))
    cloud_white = np.interp(wavelengths_nm, (443, 900, 1600, 2200), (0.72, 0.66, 0.42, 0.3))
    thickness = clouds.cloud * (0.9 + 0.1 * noise(sky, light.shape, 40, 2))
    is_top = sensor.quantity == "toa_reflectance"
    micron = wavelengths_nm / 1000
    rayleigh = 0.0088 * micron**-4.05 / (4 * np.sin(sun.elevation)) if is_top else np.zeros(len(micron))
    gas = np.interp(wavelengths_nm, (443, 900, 945, 980, 1300, 1373, 1450, 1600), (0.98, 0.97, 0.45, 0.95, 0.95, 0.004, 0.95, 0.97))
    cirrus = 0.004 * np.exp(noise(sky, light.shape, 300, 2.5)) if is_top else np.zeros(1, np.float32)
    for k, band in enumerate(sensor.bands):
        plane = image[k] * gain[k] * (1 - 1.2 * rayleigh[k]) + haze * (wavelengths_nm[k] / 490) ** -1.6 + rayleigh[k]
        plane += thickness * (cloud_white[k] - plane)
        plane = (plane * gas[k] if is_top else plane) + cirrus
        image[k] = ndimage.gaussian_filter(plane, 0.42 * band.gsd_m / TRUTH_M, truncate=2.5, mode="nearest")
    return image


def radar_image(sky: np.random.Generator, acquisition: Acquisition, planet: Planet, surface: Surface) -> np.ndarray:
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


def height_image(planet: Planet, surface: Surface) -> np.ndarray:
    """Return the height of the surface above sea level (1, y, x) at 5 m."""
    ground = ndimage.zoom(planet.elevation_m, 2, order=1, grid_mode=True, mode="nearest")
    return (ground + block_sum(surface.height, 2) * (HEIGHT_STEP_M / 4))[None]


def aerial_image(sky: np.random.Generator, acquisition: Acquisition, surface: Surface, sun: Sun) -> np.ndarray:
    """Return film-like 8-bit colour (band, y, x) on the 2.5 m grid, with the shadows of trees and houses."""
    wavelengths_nm = np.array([band.wavelength_nm for band in acquisition.sensor.bands], dtype=float)
    table = reflectance_table(wavelengths_nm, acquisition.day)
    exposure, haze = sky.uniform(2.6, 3.4), np.array([0.004, 0.008, 0.016]) * sky.uniform(0.5, 1.5)
    curve = [
        (255 * np.clip(exposure * (table[:, k, None] * np.arange(256) / TONE_ONE * tint + haze[k]), 0, 1) ** (1 / 1.7))
        for k in range(3)
        for tint in (1.0, (0.38, 0.42, 0.5)[k])
    ]
    film = np.rint(np.stack(curve)).astype(np.uint8).reshape(3, 2, -1)  # band, lit or shaded, code x tone
    image = np.empty((3, *surface.code.shape), np.uint8)
    reach = int(40 / np.tan(sun.elevation) / FINE_M) + 2
    drop = np.tan(sun.elevation) * FINE_M / HEIGHT_STEP_M
    for rows in strips(surface.code.shape):
        top = rows.start
        height = np.pad(
            surface.height[max(top - reach, 0) : rows.stop + reach].astype(np.int16),
            ((0, 0), (reach, reach)),
            mode="edge",
        )
        height = np.pad(height, ((max(reach - top, 0), max(rows.stop + reach - surface.code.shape[0], 0)), (0, 0)), mode="edge")
        own = height[reach:-reach, reach:-reach]
        is_shaded = np.zeros(own.shape, bool)
        for step in range(1, reach):
            dy, dx = reach - round(step * np.cos(sun.azimuth)), reach + round(step * np.sin(sun.azimuth))
            caster = height[dy : dy + own.shape[0], dx : dx + own.shape[1]]
            is_shaded |= caster - own > int(step * drop)
        entry = (surface.code[rows].astype(np.int32) << 8) + surface.tone[rows]
        for k in range(3):
            image[k, rows] = np.where(is_shaded, film[k, 1][entry], film[k, 0][entry])
    return image


Sampler = Callable[[np.ndarray], np.ndarray]


def sampler(image: np.ndarray, gsd_m: float, order: int) -> Sampler:
    """Return a function from planet metres (2, row, column) to image values (band, row, column), by spline of `order`."""
    planes = [ndimage.spline_filter(p, order, output=np.float32, mode="nearest") for p in image] if order > 1 else list(image)

    def sample(planet_m: np.ndarray) -> np.ndarray:
        position = planet_m / gsd_m - 0.5
        values = np.empty((len(planes), *position.shape[1:]), np.float32)
        for plane, value in zip(planes, values):
            ndimage.map_coordinates(plane, position, value, order, mode="nearest", prefilter=False)
        return values

    return sample


def detect(physical: np.ndarray, sensor: Sensor, draw: np.random.Generator) -> np.ndarray:
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
