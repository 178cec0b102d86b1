"""What is drawn anew every time a sample is seen: symmetries of the square, crops, brightness and contrast, speckle.

Works on physical units. Geometry is the same for all tiles of a sample; light varies on reflectance only, speckle on
radar only. Everything comes from the generator passed in, which the stream keys on (seed, step, lane).
"""

from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.errors import InputError
from pipeline.sensors import Sensor
from pipeline.units import BACKSCATTER


@dataclass(frozen=True)
class SensorArrays:
    """One sensor's part of a micro-batch.

    pixels      (B, T, C, Y, X) float32 in `sensor.unit`; anything where not valid
    is_valid    (B, T, Y, X) bool, False all over an absent tile
    is_present  (B, T) bool
    time_days   (B, T) float64 since 1970-01-01, NaN where absent or unknown
    """

    sensor: Sensor
    pixels: np.ndarray
    is_valid: np.ndarray
    is_present: np.ndarray
    time_days: np.ndarray


@dataclass(frozen=True)
class AugmentConfig:
    """Off where it changes nothing: 0, or a crop of the whole."""

    symmetries: bool = True
    """One of the eight symmetries of the square."""
    brightness: float = 0.0
    """Reflectances are multiplied by 1 ± this, each date by its own factor."""
    contrast: float = 0.0
    """Their differences from the tile's mean are multiplied by 1 ± this."""
    speckle_looks: float = 0.0
    """Radar power is multiplied by gamma noise of mean 1 and variance 1 / looks; 0: none."""
    crop_area: tuple[float, float] = field(default=(1.0, 1.0))
    """Least and largest share of the ground that a random crop keeps; it is resized, so its pixels are finer than the sensor's."""

    def __post_init__(self) -> None:
        if not (0 <= self.brightness < 1 and 0 <= self.contrast < 1 and self.speckle_looks >= 0):
            raise InputError(
                f"brightness {self.brightness:g}, contrast {self.contrast:g} and speckle_looks {self.speckle_looks:g}: "
                "expected [0, 1), [0, 1) and 0 or more"
            )
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise InputError(f"crop_area is {self.crop_area}, expected 0 < least <= largest <= 1")

    @property
    def geometry(self) -> "AugmentConfig":
        """The same without what changes values."""
        return replace(self, brightness=0.0, contrast=0.0, speckle_looks=0.0)


def augment(sensors: dict[str, SensorArrays], config: AugmentConfig, rng: np.random.Generator) -> dict[str, SensorArrays]:
    """Return the tiles of B samples as `rng` changes them: each sample its own way, all its tiles in the same geometry."""
    num_samples = len(next(iter(sensors.values())).pixels)
    symmetries = rng.integers(8, size=num_samples) if config.symmetries else np.zeros(num_samples, int)
    side = np.sqrt(rng.uniform(*config.crop_area, num_samples))
    corner = rng.uniform(size=(num_samples, 2)) * (1 - side[:, None])
    result = {}
    for name, arrays in sensors.items():
        if config.crop_area[0] < 1:
            arrays = crop(arrays, corner, side)
        if config.symmetries:
            arrays = turn(arrays, symmetries)
        if is_reflectance(arrays.sensor) and (config.brightness or config.contrast):
            arrays = light(arrays, config.brightness, config.contrast, rng)
        if arrays.sensor.quantity in BACKSCATTER and config.speckle_looks:
            arrays = speckle(arrays, config.speckle_looks, rng)
        result[name] = arrays
    return result


def is_reflectance(sensor: Sensor) -> bool:
    return sensor.sensing == "passive" and sensor.quantity.endswith("reflectance")


def dihedral(image: np.ndarray, symmetry: int) -> np.ndarray:
    """Return `image` (..., y, x) under one of the eight symmetries of the square, 0 being the identity."""
    turned = np.rot90(image, symmetry % 4, axes=(-2, -1))
    return turned[..., ::-1] if symmetry >= 4 else turned


def turn(arrays: SensorArrays, symmetries: np.ndarray) -> SensorArrays:
    """Return each sample under its symmetry (B,)."""
    pixels, is_valid = np.empty_like(arrays.pixels), np.empty_like(arrays.is_valid)
    for number, symmetry in enumerate(symmetries.tolist()):
        pixels[number] = dihedral(arrays.pixels[number], symmetry)
        is_valid[number] = dihedral(arrays.is_valid[number], symmetry)
    return replace(arrays, pixels=pixels, is_valid=is_valid)


def light(arrays: SensorArrays, brightness: float, contrast: float, rng: np.random.Generator) -> SensorArrays:
    """Return reflectances brightened or darkened and spread or drawn together about each band's mean over valid pixels."""
    shape = (*arrays.is_present.shape, 1, 1, 1)
    factor = 1 + rng.uniform(-brightness, brightness, shape).astype(np.float32)
    spread = 1 + rng.uniform(-contrast, contrast, shape).astype(np.float32)
    is_valid = arrays.is_valid[:, :, None]
    count = np.maximum(is_valid.sum((-2, -1), keepdims=True), 1)
    mean = np.where(is_valid, arrays.pixels, 0).sum((-2, -1), keepdims=True) / count.astype(np.float32)
    return replace(arrays, pixels=arrays.pixels * (spread * factor) + mean * ((1 - spread) * factor))


def speckle(arrays: SensorArrays, looks: float, rng: np.random.Generator) -> SensorArrays:
    """Return backscatter in dB after its linear power was multiplied by gamma noise, as averaging `looks` looks leaves it."""
    power = rng.standard_gamma(looks, arrays.pixels.shape, np.float32) / np.float32(looks)
    # The smallest number is for few looks, whose gamma can round to zero.
    return replace(arrays, pixels=arrays.pixels + 10 * np.log10(np.maximum(power, np.finfo(np.float32).tiny)))


def crop(arrays: SensorArrays, corner: np.ndarray, side: np.ndarray) -> SensorArrays:
    """Return the square of ground at `corner` (B, 2: y, x) with `side` (B,), in shares of the tile, resized to the tile's pixels.

    Bilinear, radar in linear power. A pixel is valid if all that it is made of is.
    """
    weights = [_weights(corner[:, axis], side, arrays.pixels.shape[axis - 2]) for axis in (0, 1)]
    (y, x), (near_y, near_x) = weights, [(w > 0).astype(np.float32) for w in weights]
    pixels = np.where(arrays.is_valid[:, :, None], arrays.pixels, 0)
    in_db = arrays.sensor.quantity in BACKSCATTER
    pixels = np.power(10, pixels / 10) if in_db else pixels
    pixels = y[:, None, None] @ pixels @ x[:, None, None].swapaxes(-1, -2)
    pixels = 10 * np.log10(pixels) if in_db else pixels
    is_spoilt = near_y[:, None] @ (~arrays.is_valid).astype(np.float32) @ near_x[:, None].swapaxes(-1, -2)
    return replace(arrays, pixels=pixels, is_valid=is_spoilt < 0.5)


def _weights(start: np.ndarray, side: np.ndarray, size: int) -> np.ndarray:
    """Return (B, size, size): what each of `size` pixels of [start, start + side) is made of, rows adding up to 1."""
    centre = (start[:, None] + side[:, None] * (np.arange(size) + 0.5) / size) * size - 0.5
    weights = np.maximum(0, 1 - np.abs(np.clip(centre, 0, size - 1)[:, :, None] - np.arange(size)))
    return weights.astype(np.float32)
