"""Multi-crop: several windows of one sample's ground, large and small, cut from the tiles of all its sensors.

Windows are squares in metres whose corners lie on a raster of `step_m`, so the same ground is whole pixels of every
sensor and nothing is resampled (Caron et al., 2020, arXiv 2006.09882, resize instead).
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.augment import SensorArrays
from pipeline.errors import InputError
from pipeline.sensors import Sensor


@dataclass(frozen=True)
class MultiCrop:
    """`num_global` windows of `global_m` and `num_local` of `local_m` metres, in this order."""

    num_global: int = 2
    global_m: float = 480.0
    num_local: int = 6
    local_m: float = 160.0
    step_m: float = 40.0
    num_plain: int = 0
    """So many of the first windows keep their light and speckle."""

    def __post_init__(self) -> None:
        if self.num_global < 1 or self.num_local < 0 or min(self.global_m, self.local_m, self.step_m) <= 0:
            raise InputError("multi-crop needs num_global 1 or more, num_local 0 or more, sizes above 0")
        if not 0 <= self.num_plain <= self.num_global + self.num_local:
            raise InputError(
                f"num_plain is {self.num_plain}, expected 0 to {self.num_global + self.num_local}, the number of crops"
            )

    @property
    def sizes_m(self) -> list[float]:
        return [self.global_m] * self.num_global + [self.local_m] * self.num_local

    def check(self, site_size_m: float, sensors: list[Sensor]) -> None:
        """Raise an InputError where a window does not fit the site, or is not whole pixels of a sensor."""
        for size in {self.global_m, *([self.local_m] * bool(self.num_local))}:
            if size > site_size_m:
                raise InputError(f"a crop of {size:g} m does not fit a site of {site_size_m:g} m; use a smaller one")
        for sensor in sensors:
            for length in (self.global_m, self.local_m, self.step_m):
                _pixels(length, sensor)

    def corners(self, num_samples: int, site_size_m: float, rng: np.random.Generator) -> list[np.ndarray]:
        """Return for each window the metres from the site's upper left corner, (B, 2: y, x)."""
        places = [int((site_size_m - size) // self.step_m) + 1 for size in self.sizes_m]
        return [rng.integers(count, size=(num_samples, 2)) * self.step_m for count in places]


def cut(arrays: SensorArrays, corner_m: np.ndarray, size_m: float) -> SensorArrays:
    """Return each sample's window of `size_m` at `corner_m` (B, 2: y, x)."""
    size = _pixels(size_m, arrays.sensor)
    starts = np.rint(corner_m / arrays.sensor.gsd_m).astype(int).tolist()
    pixels = np.stack([p[..., y : y + size, x : x + size] for p, (y, x) in zip(arrays.pixels, starts)])
    is_valid = np.stack([v[..., y : y + size, x : x + size] for v, (y, x) in zip(arrays.is_valid, starts)])
    return replace(arrays, pixels=pixels, is_valid=is_valid)


def _pixels(length_m: float, sensor: Sensor) -> int:
    pixels = length_m / sensor.gsd_m
    if abs(pixels - round(pixels)) > 1e-6:
        raise InputError(
            f"{length_m:g} m of a crop are {pixels:g} pixels of sensor '{sensor.name}'; use a multiple of {sensor.gsd_m:g} m"
        )
    return round(pixels)
