"""Clouds of one image laid over another: real patterns where a cloudy image has no clear twin, or a clear one no cloudy one.

Decides what is cloud in an image and how it is mixed with the ground under it: linearly, as light is. Shadows are not laid.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.augment import dihedral
from pipeline.sensors import Sensor

BLUE_NM = 490.0
OPAQUE_REFLECTANCE = 0.3
"""Blue light above that of the clear ground from which a cloud hides the ground wholly."""
CLEAR_PERCENTILE = 25.0
MIN_COVER = 0.05


@dataclass(frozen=True)
class CloudPattern:
    """`opacity` (y, x) in 0..1, and the light (band, y, x) that the cloud itself sends, in reflectance."""

    opacity: np.ndarray
    light: np.ndarray

    def over(self, clear: np.ndarray, symmetry: int = 0) -> np.ndarray:
        """Return `clear` (band, y, x) under this pattern, turned into one of the eight symmetries of the square."""
        opacity, light = dihedral(self.opacity, symmetry), dihedral(self.light, symmetry)
        return np.asarray(clear * (1 - opacity) + light, np.float32)

    def turned(self, symmetry: int) -> np.ndarray:
        """Return the opacity as `over` lays it."""
        return dihedral(self.opacity, symmetry)


def patterns(sensor: Sensor, cloudy: np.ndarray, is_valid: np.ndarray) -> list[CloudPattern]:
    """Return the patterns of cloudy tiles (N, band, y, x) in reflectance that have at least 5 % cloud.

    The ground under them is taken to be as bright, in each band, as the first quartile of all their valid pixels together.
    """
    seen = cloudy.transpose(1, 0, 2, 3)[:, is_valid]
    ground = np.percentile(seen, CLEAR_PERCENTILE, axis=1)[:, None, None]
    blue = int(np.argmin([abs((band.wavelength_nm or np.inf) - BLUE_NM) for band in sensor.bands]))
    found = []
    for tile, valid in zip(cloudy, is_valid):
        opacity = np.where(valid, np.clip((tile[blue] - ground[blue]) / OPAQUE_REFLECTANCE, 0, 1), 0)
        if opacity.mean() >= MIN_COVER:
            light = np.where(opacity > 0, np.maximum(tile - (1 - opacity) * ground, 0), 0)
            found.append(CloudPattern(opacity.astype(np.float32), light.astype(np.float32)))
    return found
