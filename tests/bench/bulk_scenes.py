"""Two dates of one full-size Sentinel-2-like scene with a known displacement, as one COG a band; memory stays at a strip.

Ground is a sum of periodic noises of several wavelengths and periods, moved exactly by the phase of their waves, so the
second date shows the first one's ground a known part of a pixel further on, at any size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

from jobs.simulate import scan_folder
from pipeline.sensors import Band, load_sensor
from pipeline.simulation.planet import noise

CRS, WEST_M, NORTH_M = "EPSG:32632", 399_960.0, 5_300_040.0
STRIP_PX = 3072  # whole blocks of 512 px at 10, 20 and 60 m
FIELDS = ((1830, 150.0), (1373, 24.0), (1097, 4.0))
"""Period and wavelength of each noise, px of 10 m: together they repeat after far more than a scene."""
DATES = ("20200601", "20200911")


@dataclass(frozen=True)
class BulkConfig:
    """`size_px` at 10 m, a multiple of 6; `shift_px` (dy, dx): how far on the second date shows what the first shows."""

    size_px: int = 10980
    shift_px: tuple[float, float] = (0.37, -0.62)
    driver: str = "COG"
    compress: str = "DEFLATE"
    seed: int = 0


def make_scenes(folder: Path, config: BulkConfig) -> None:
    """Write both dates and their catalog into `folder`, unless they are there."""
    if (folder / "scenes.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    ground = [noise(np.random.default_rng([config.seed, i]), (n, n), wave) for i, (n, wave) in enumerate(FIELDS)]
    for number, date in enumerate(DATES):
        shift = np.array(config.shift_px) * number
        fields = [np.tanh(2 * _moved(field, shift)) for field in ground]
        for index, band in enumerate(load_sensor("sentinel2_l2a").bands):
            rng = np.random.default_rng([config.seed, number, index])
            _write_band(folder / f"S2A_MSIL2A_{date}_{band.name}.tif", fields, band, index, config, rng)
    scan_folder(str(folder), None, None, None)


def _moved(field: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the periodic field as seen `shift` (dy, dx) px further on: out(p) = field(p - shift)."""
    y, x = np.fft.fftfreq(field.shape[0])[:, None], np.fft.rfftfreq(field.shape[1])
    wave = np.exp(-2j * np.pi * (y * shift[0] + x * shift[1]))
    return np.fft.irfft2(np.fft.rfft2(field) * wave, field.shape).astype(np.float32)


def _write_band(path: Path, fields: list[np.ndarray], band: Band, index: int, config: BulkConfig, rng: np.random.Generator) -> None:
    factor = round(band.gsd_m / 10)
    size = config.size_px // factor
    profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint16", "nodata": 0, "crs": CRS}
    transform = from_origin(WEST_M, NORTH_M, band.gsd_m, band.gsd_m)
    raw = path.with_suffix(".raw")
    with rasterio.open(raw, "w", transform=transform, tiled=True, blockxsize=512, blockysize=512, **profile) as file:
        for top in range(0, config.size_px, STRIP_PX):
            strip = _strip(fields, index, top, min(STRIP_PX, config.size_px - top), config.size_px, factor)
            strip += rng.normal(0, 6, strip.shape).astype(np.float32)
            strip[_outside(strip.shape, top // factor, size)] = 0
            window = rasterio.windows.Window(0, top // factor, size, strip.shape[0])
            file.write(np.clip(np.rint(strip), 0, 65535).astype(np.uint16), 1, window=window)
    lossless = {"QUALITY": 100, "REVERSIBLE": "YES"} if config.driver == "JP2OpenJPEG" else {"COMPRESS": config.compress}
    predictor = {"PREDICTOR": "YES", "BLOCKSIZE": 512, "NUM_THREADS": "ALL_CPUS"} if config.driver == "COG" else {}
    rasterio.shutil.copy(raw, path, driver=config.driver, **lossless, **predictor)
    raw.unlink()


def _strip(fields: list[np.ndarray], index: int, top: int, rows: int, columns: int, factor: int) -> np.ndarray:
    """Return rows of one band in stored numbers (float32): means of `factor` x `factor` px, brightness by band and field."""
    rng = np.random.default_rng(index)
    total = np.full((rows, columns), 1200 + 150 * index, np.float32)
    for field, height in zip(fields, (500, 200, 60)):
        y, x = (np.arange(start, start + n) % field.shape[0] for start, n in ((top, rows), (0, columns)))
        total += height * np.float32(rng.uniform(0.5, 1.0)) * field[y[:, None], x]
    return total.reshape(rows // factor, factor, columns // factor, factor).mean(axis=(1, 3))


def _outside(shape: tuple[int, ...], first_row: int, size: int) -> np.ndarray:
    """Return True beyond the edge of the swath, which cuts off the south-east corner of a scene."""
    y, x = (first_row + np.arange(shape[0]))[:, None], np.arange(shape[1])
    return x + 0.25 * y > 1.15 * size
