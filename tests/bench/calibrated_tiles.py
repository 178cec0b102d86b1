"""Tiles made up for benchmarks, whose compressed size is that of real ones.

Blosc (zstd 3, bitshuffle) makes real Sentinel-2 L2A patches 1.76 times smaller and real Sentinel-1 chips in hundredths
of a decibel 1.36 to 1.51 times; the noise below gives 1.76 and 1.45.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from pipeline.archive import Archive, create_archive
from pipeline.grid import Grid
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

SENSORS = ("sentinel2_l2a", "sentinel1_grd")
NOISE = {"sentinel2_l2a": 105.0, "sentinel1_grd": 110.0}
"""Standard deviation of what is independent from pixel to pixel, in stored numbers."""
LEVEL = {"sentinel2_l2a": (1400.0, 350.0), "sentinel1_grd": (-1200.0, 300.0)}
CLOUDY_SHARE = 0.2


def make_pixels(sensor: Sensor, site_size_m: float, rng: np.random.Generator) -> np.ndarray:
    """Return (band, y, x) in the sensor's dtype: smooth ground, and noise at each band's own pixel size."""
    shape = sensor.tile_shape(site_size_m)
    mean, spread = LEVEL[sensor.name]
    ground = gaussian_filter(rng.standard_normal(shape), 3)
    ground *= spread / ground.std()
    bands = []
    for band in sensor.bands:
        step = max(1, round(band.gsd_m / sensor.gsd_m))
        native = mean + (ground * rng.uniform(0.5, 1.5))[::step, ::step]
        native += rng.normal(0, NOISE[sensor.name], native.shape)
        fine = zoom(native, step, order=1) if step == 2 else native.repeat(step, 0).repeat(step, 1)
        bands.append(fine[: shape[0], : shape[1]])
    return sensor.to_stored(sensor.to_physical(np.stack(bands)))


def make_valid(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a mask, of which `CLOUDY_SHARE` have a cloud."""
    if rng.random() > CLOUDY_SHARE:
        return np.ones(shape, bool)
    return gaussian_filter(rng.standard_normal(shape), 6) > -0.08


def make_tiles(first_site: int, num_sites: int, num_dates: int, grid: Grid, seed: int) -> list[Tile]:
    rng = np.random.default_rng([seed, first_site])
    tiles = []
    for name in SENSORS:
        sensor = load_sensor(name)
        for site in range(first_site, first_site + num_sites):
            for order in range(num_dates):
                time = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=40 * order + len(name))
                pixels, is_valid = make_pixels(sensor, grid.site_size_m, rng), make_valid(sensor.tile_shape(grid.site_size_m), rng)
                tiles.append(Tile(name, f"site_{site}", pixels, is_valid, time, order, f"scene_{order}"))
    return tiles


@contextmanager
def calibrated_archive(num_shards: int, sites_per_shard: int, num_dates: int = 1, seed: int = 0) -> Iterator[Archive]:
    """Yield an archive of Sentinel-2 and Sentinel-1 tiles in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        grid = Grid()
        archive = create_archive(f"{folder}/archive", grid, {name: load_sensor(name) for name in SENSORS}, {})
        for shard in range(num_shards):
            tiles = make_tiles(shard * sites_per_shard, sites_per_shard, num_dates, grid, seed)
            archive.publish(f"s_{shard:04d}", "train", tiles, "calibrated")
        yield archive
