"""Match two images of the same ground by structure: descriptors that survive another sensor, and the shift of windows.

Arrays in, numbers out, in pixels: what the shifts mean together is decided in `displacement.py`, what to trust in
`registration.py`. A shift (dy, dx) says: what the reference shows at p, the moving image shows at p + (dy, dx).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

BATCH = 16
"""Windows correlated at once; bounds the memory of a call."""
NEWTON_STEPS = 4
FLAT_VARIANCE = 1e-8
"""Windows whose structure varies less show nothing but rounding; textured ones have about 0.1."""


@dataclass(frozen=True)
class Points:
    """One measured shift per window: centre (y, x), shift (dy, dx), all (N,) px, and `height`, the peak in robust sigmas."""

    y: np.ndarray
    x: np.ndarray
    dy: np.ndarray
    dx: np.ndarray
    height: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: np.ndarray) -> "Points":
        return Points(*(getattr(self, name)[chosen] for name in ("y", "x", "dy", "dx", "height")))

    @property
    def centre(self) -> np.ndarray:
        return np.stack([self.y, self.x], axis=1)

    @property
    def shift(self) -> np.ndarray:
        return np.stack([self.dy, self.dx], axis=1)

    @classmethod
    def join(cls, parts: list["Points"]) -> "Points":
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("y", "x", "dy", "dx", "height")))


def describe(pixels: np.ndarray, is_valid: np.ndarray, sigma_px: float) -> np.ndarray:
    """Return (3, y, x) float32 structure of (band, y, x) pixels: edge strength, and its cosine and sine at twice the angle.

    Twice the angle makes an edge the same whichever side is bright, so that sensors with opposite contrast still match;
    the square root keeps few strong edges from outvoting many faint ones. Zero where validity (y, x) is not safe.
    After the orientation channels of Ye et al. 2019 (CFOG), reduced to their first two harmonics.
    """
    strength, cosine, sine = (np.zeros(is_valid.shape, np.float32) for _ in range(3))
    for band in pixels:
        filled = _fill(band, is_valid)
        gy = ndimage.gaussian_filter(filled, sigma_px, order=(1, 0), truncate=3)
        gx = ndimage.gaussian_filter(filled, sigma_px, order=(0, 1), truncate=3)
        squared = gx * gx + gy * gy + 1e-12
        strength += np.sqrt(squared)
        cosine += (gx * gx - gy * gy) / np.sqrt(squared)
        sine += 2 * gx * gy / np.sqrt(squared)
    damping = 1 / np.sqrt(strength + 1e-6 * strength.mean() + 1e-12)
    is_safe = ndimage.binary_erosion(is_valid, iterations=int(np.ceil(3 * sigma_px)), border_value=1)
    return np.stack([part * damping * is_safe for part in (strength, cosine, sine)])


def _fill(band: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Return the band standardised, invalid pixels at the mean."""
    inside = band[is_valid]
    if not len(inside):
        return np.zeros(band.shape, np.float32)
    return np.where(is_valid, (band - inside.mean()) / (inside.std() + 1e-9), 0).astype(np.float32)


def window_centres(is_valid: np.ndarray, size_px: int, spacing_px: int, min_valid: float = 0.6) -> np.ndarray:
    """Return (N, 2) centres of the windows on a regular grid that are valid enough, both images' validity in `is_valid`."""
    starts = [np.arange(0, max(n - size_px, 0) + 1, spacing_px) + max((n - size_px) % spacing_px, 0) // 2 for n in is_valid.shape]
    total = np.pad(np.cumsum(np.cumsum(is_valid.astype(np.float64), 0), 1), ((1, 0), (1, 0)))
    y, x = (a.ravel() for a in np.meshgrid(*starts, indexing="ij"))
    y2, x2 = (np.minimum(a + size_px, n) for a, n in zip((y, x), is_valid.shape))
    share = (total[y2, x2] - total[y, x2] - total[y2, x] + total[y, x]) / size_px**2
    kept = share >= min_valid
    return np.stack([y[kept], x[kept]], axis=1) + size_px // 2


def correlate(
    reference: np.ndarray,
    moving: np.ndarray,
    centres: np.ndarray,
    guess: np.ndarray,
    size_px: int,
    whitening: float,
    smoothing_px: float,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (spectrum, surface) batches of windows around `centres` (N, 2), the moving ones displaced by `guess` (N, 2) int.

    Descriptors are (3, y, x). A surface (n, size, size) peaks where the window's shift beyond its guess is, zero at
    [0, 0], wrapping, and is all zero where one of the two is flat; `spectrum` is its half transform. `whitening` 0 is
    correlation, 1 phase correlation; `smoothing_px` takes off the waves near the pixel size, where edges of sampled images
    pull towards whole pixels.
    """
    wave = np.hypot(fft.fftfreq(size_px)[:, None], fft.rfftfreq(size_px))
    low_pass = np.exp(-2 * (np.pi * smoothing_px * wave) ** 2).astype(np.float32)
    taper = np.outer(np.hanning(size_px + 2)[1:-1], np.hanning(size_px + 2)[1:-1]).astype(np.float32)
    for first in range(0, len(centres), BATCH):
        part = slice(first, first + BATCH)
        fixed = fft.rfft2(_windows(reference, centres[part], size_px) * taper)
        moved = fft.rfft2(_windows(moving, centres[part] + guess[part], size_px) * taper)
        spectrum = (np.conj(fixed) * moved).sum(axis=1)
        energy = (np.abs(fixed) ** 2).sum(axis=1) * (np.abs(moved) ** 2).sum(axis=1)
        spectrum /= (energy + 1e-12 * energy.max() + 1e-30) ** (whitening / 2)
        is_flat = np.minimum(*((np.abs(f) ** 2).sum(axis=(1, 2, 3)) for f in (fixed, moved))) < FLAT_VARIANCE * size_px**4
        spectrum *= low_pass * ~is_flat[:, None, None]
        spectrum[:, 0, 0] = 0
        surface = fft.irfft2(spectrum, s=(size_px, size_px))
        scale = surface.std(axis=(1, 2), keepdims=True) + 1e-30
        yield spectrum / scale, surface / scale


def _windows(descriptor: np.ndarray, centres: np.ndarray, size_px: int) -> np.ndarray:
    """Return (N, 3, size, size), zero outside the image, each channel's mean over its safe pixels taken off."""
    found = np.zeros((len(centres), len(descriptor), size_px, size_px), np.float32)
    for window, (y, x) in zip(found, centres - size_px // 2):
        top, left, bottom, right = (
            max(y, 0),
            max(x, 0),
            min(y + size_px, descriptor.shape[1]),
            min(x + size_px, descriptor.shape[2]),
        )
        if top < bottom and left < right:
            window[:, top - y : bottom - y, left - x : right - x] = descriptor[:, top:bottom, left:right]
    is_safe = found[:, :1] > 0
    mean = found.sum(axis=(2, 3), keepdims=True) / np.maximum(is_safe.sum(axis=(2, 3), keepdims=True), 1)
    return (found - mean) * is_safe


def peak(spectrum: np.ndarray, surface: np.ndarray, radius_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return shifts (N, 2) of the highest points within `radius_px` of zero, to a small part of a pixel, and their heights.

    Between pixels the surface is the sum of its own waves, so the maximum is found by Newton's steps on it: nothing is
    interpolated and no preference for whole pixels remains. Height is in robust standard deviations of the area searched.
    """
    size = surface.shape[-1]
    radius = min(radius_px, size // 2 - 1)
    near = np.roll(surface, (radius, radius), axis=(1, 2))[:, : 2 * radius + 1, : 2 * radius + 1].reshape(len(surface), -1)
    best = near.argmax(axis=1)
    shift = np.stack(np.unravel_index(best, (2 * radius + 1, 2 * radius + 1)), axis=1).astype(float) - radius
    middle = np.median(near, axis=1)
    spread = 1.4826 * np.median(np.abs(near - middle[:, None]), axis=1) + 1e-9
    height = (near[np.arange(len(near)), best] - middle) / spread
    return _newton(spectrum, shift, size), height


def _newton(spectrum: np.ndarray, shift: np.ndarray, size: int) -> np.ndarray:
    wave_y, wave_x = 2j * np.pi * fft.fftfreq(size), 2j * np.pi * fft.rfftfreq(size)
    twice = np.where((np.arange(size // 2 + 1) == 0) | (np.arange(size // 2 + 1) * 2 == size), 1.0, 2.0)
    start = shift.copy()
    for _ in range(NEWTON_STEPS):
        row, column = np.exp(shift[:, :1] * wave_y), np.exp(shift[:, 1:] * wave_x) * twice
        # Moments of the waves along x for every wave along y, then along y: derivatives of order 0 to 2 at once.
        along = np.einsum("nyx,xkn->nyk", spectrum, np.stack([column, column * wave_x, column * wave_x**2], -1).transpose(1, 2, 0))
        c0, cx, cxx = (row * along[..., k] for k in range(3))
        gy, gx = (c0 * wave_y).sum(1).real, cx.sum(1).real
        hyy, hxy, hxx = (c0 * wave_y**2).sum(1).real, (cx * wave_y).sum(1).real, cxx.sum(1).real
        determinant = hyy * hxx - hxy**2
        is_top = (hyy < 0) & (determinant > 0)
        safe = np.where(is_top, determinant, 1)
        step = np.stack([-(hxx * gy - hxy * gx) / safe, -(hyy * gx - hxy * gy) / safe], axis=1)
        shift = np.where(is_top[:, None], shift + np.clip(step, -0.5, 0.5), shift)
    return np.clip(shift, start - 1, start + 1)


def average_down(pixels: np.ndarray, is_valid: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means over valid pixels of `factor` x `factor` blocks, and which blocks are at least half valid."""
    if factor == 1:
        return pixels, is_valid
    rows, columns = (n // factor for n in is_valid.shape)
    blocks = (slice(rows * factor), slice(columns * factor))
    share = is_valid[blocks].reshape(rows, factor, columns, factor).mean(axis=(1, 3))
    masked = np.where(is_valid, pixels, 0)[:, *blocks].reshape(len(pixels), rows, factor, columns, factor)
    return (masked.mean(axis=(2, 4)) / np.maximum(share, 1e-6)).astype(np.float32), share >= 0.5
