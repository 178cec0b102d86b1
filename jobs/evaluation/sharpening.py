"""Pan-sharpening: Wald's protocol, and sharpeners that learn nothing.

Decides how a pair of images is brought to coarser pixels, so that what was there before is the truth (Wald et al. 1997), and
the baselines. Images are (band, y, x) float64 in the sensors' numbers, pixel-is-area; `ratio` panchromatic pixels lie along the
side of a multispectral one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

MTF_AT_NYQUIST = {"ms": 0.3, "pan": 0.15}
"""What is left of contrast at the coarse grid's Nyquist frequency: about what makers state of multispectral and panchromatic
cameras in orbit (WorldView, GeoEye: 0.23 to 0.36, 0.11 to 0.17; Vivone et al. 2015)."""


@dataclass(frozen=True)
class Pair:
    """`ms` (band, y, x) and `pan` (y * ratio, x * ratio) of the same ground."""

    ms: np.ndarray
    pan: np.ndarray

    @property
    def ratio(self) -> int:
        return self.pan.shape[0] // self.ms.shape[1]

    def reduced(self) -> "Pair":
        """Return both at pixels `ratio` times coarser."""
        pan = degrade(self.pan[None], self.ratio, MTF_AT_NYQUIST["pan"])[0]
        return Pair(degrade(self.ms, self.ratio, MTF_AT_NYQUIST["ms"]), pan)

    def coarse_pan(self) -> np.ndarray:
        """Return the panchromatic image at the multispectral pixels."""
        return degrade(self.pan[None], self.ratio, MTF_AT_NYQUIST["pan"])[0]


def degrade(image: np.ndarray, ratio: int, gain: float) -> np.ndarray:
    """Return an image at pixels `ratio` times coarser, seen through a Gaussian that leaves `gain` at their Nyquist frequency."""
    rows, columns = (_weights(size, ratio, gain) for size in image.shape[1:])
    return np.asarray(rows @ np.asarray(image, np.float64) @ columns.T)


def _weights(size: int, ratio: int, gain: float) -> np.ndarray:
    """Return (size / ratio, size): what each coarse pixel sees of the fine ones, rows adding up to 1."""
    sigma = ratio / np.pi * np.sqrt(-2 * np.log(gain))
    centre = (np.arange(size // ratio) + 0.5) * ratio - 0.5
    weights = np.exp(-((np.arange(size) - centre[:, None]) ** 2) / (2 * sigma**2))
    return weights / weights.sum(1, keepdims=True)


def bicubic(pair: Pair) -> np.ndarray:
    """Return the multispectral image enlarged by cubic convolution (Keys 1981); the panchromatic one is not looked at."""
    # With `antialias` torch's kernel is Keys' own, a = -0.5, which keeps slopes; without, it is a = -0.75, which does not.
    size = [pair.ratio * side for side in pair.ms.shape[1:]]
    return F.interpolate(torch.from_numpy(pair.ms)[None], size=size, mode="bicubic", antialias=True)[0].numpy()


def brovey(pair: Pair) -> np.ndarray:
    """Return each enlarged band times pan / intensity (Gillespie et al. 1987); pan has the mean and deviation of the intensity."""
    fine = bicubic(pair)
    intensity = fine.mean(0)
    matched = (pair.pan - pair.pan.mean()) * (intensity.std() / max(pair.pan.std(), 1e-12)) + intensity.mean()
    return fine * (matched / np.where(np.abs(intensity) > 1e-12, intensity, 1.0))


def gram_schmidt(pair: Pair) -> np.ndarray:
    """Return Gram-Schmidt adaptive (Aiazzi et al. 2007): detail is pan less the intensity that explains it best at coarse pixels.

    Each band takes it by its covariance with that intensity.
    """
    fine, flat = bicubic(pair), pair.ms.reshape(len(pair.ms), -1)
    explained = np.column_stack([flat.T, np.ones(flat.shape[1])])
    weights, *_ = np.linalg.lstsq(explained, pair.coarse_pan().ravel(), rcond=None)
    intensity = np.tensordot(weights[:-1], fine, 1) + weights[-1]
    apart = intensity - intensity.mean()
    variance = max(float((apart**2).mean()), 1e-12)
    gains = (fine * apart).mean((1, 2)) / variance
    return fine + gains[:, None, None] * (pair.pan - intensity)


SHARPENERS: dict[str, Callable[[Pair], np.ndarray]] = {"bicubic": bicubic, "Brovey": brovey, "Gram-Schmidt": gram_schmidt}
