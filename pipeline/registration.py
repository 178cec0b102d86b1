"""Estimate how far one image lies from another: (shift, confidence, reason), never an exception and never a wild warp.

Sub-pixel phase correlation of gradient magnitudes over overlapping windows: gradients survive different radiometry
and, in part, different sensors; many windows that agree are the evidence. Arrays in, numbers out; files, grids and
what to do with the shift are decided elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

WINDOW_PX = 128
MAX_WINDOWS = 64
MIN_CONFIDENCE = 0.3
AGREEMENT_PX = 1.0


@dataclass(frozen=True)
class Registration:
    """What must be added to a scene's stated coordinates, in metres east and north of the tiling CRS.

    `confidence` is in 0..1; below `MIN_CONFIDENCE` the shift is zero and `reason` says why.
    """

    shift_x_m: float
    shift_y_m: float
    confidence: float
    reason: str

    @property
    def shift_m(self) -> tuple[float, float]:
        return self.shift_x_m, self.shift_y_m


REFERENCE = Registration(0.0, 0.0, 1.0, "reference")


def unregistered(reason: str) -> Registration:
    return Registration(0.0, 0.0, 0.0, reason)


def estimate_shift(
    reference: np.ndarray,
    moving: np.ndarray,
    reference_valid: np.ndarray,
    moving_valid: np.ndarray,
    gsd_m: float,
    max_shift_m: float,
) -> Registration:
    """Estimate the shift that brings `moving` (bands, y, x) onto `reference` (bands, y, x), both on one north-up grid.

    Validity masks are (y, x) bool. Source of the method: Kuglin & Hines 1975 (phase correlation); gradients for
    multisensor pairs as in Argyriou & Vlachos 2006.
    """
    overlap = reference_valid & moving_valid
    if overlap.mean() < 0.05:
        return unregistered("no common valid area")
    first, second = structure(reference, overlap), structure(moving, overlap)
    if min(first.std(), second.std()) < 1e-6:
        return unregistered("flat image")
    surfaces = [_correlate(first[w], second[w]) for w in _windows(overlap)]
    if not surfaces:
        return unregistered("no window with enough valid pixels")
    radius = max(2, min(int(np.ceil(max_shift_m / gsd_m)), min(surfaces[0].shape) // 2 - 2))
    crops = np.stack([_centre(surface, radius) for surface in surfaces])
    shift_y, shift_x, sharpness = _peak(crops.mean(axis=0))
    peaks = np.array([_peak(crop)[:2] for crop in crops])
    agree = np.hypot(*(peaks - (shift_y, shift_x)).T) <= AGREEMENT_PX
    # A random peak lands within AGREEMENT_PX of a given place by chance in this share of the windows.
    chance = np.pi * AGREEMENT_PX**2 / (2 * radius + 1) ** 2
    agreement = max(0.0, (agree.mean() - chance) / (1 - chance))
    confidence = float(np.clip((sharpness - 4) / 8, 0, 1) * min(1.0, 0.3 + 2 * agreement))
    at_edge = max(abs(shift_y), abs(shift_x)) > radius - 1
    evidence = f"{agree.sum()} of {len(agree)} windows agree, peak {sharpness:.1f} sigma"
    if at_edge:
        return unregistered(f"shift at the search limit of {max_shift_m:g} m; {evidence}")
    if confidence < MIN_CONFIDENCE:
        return Registration(0.0, 0.0, confidence, f"low confidence: {evidence}")
    if agree.sum() >= 3:
        shift_y, shift_x = np.median(peaks[agree], axis=0)
    # Rows run south: moving the image down by one pixel moves it south.
    return Registration(float(shift_x * gsd_m), float(-shift_y * gsd_m), confidence, evidence)


def structure(pixels: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Return the (y, x) gradient magnitude of (bands, y, x): bands standardised, smoothed, strong edges damped."""
    total = np.zeros(is_valid.shape, np.float32)
    for band in pixels:
        inside = band[is_valid]
        flat = np.where(is_valid, (band - inside.mean()) / (inside.std() + 1e-6), 0).astype(np.float32)
        total += ndimage.gaussian_gradient_magnitude(flat, sigma=1.2)
    trusted = ndimage.binary_erosion(is_valid, iterations=3, border_value=1)
    total = np.sqrt(total)
    return np.where(trusted, total - total[trusted].mean() if trusted.any() else 0, 0)


def _windows(is_valid: np.ndarray) -> list[tuple[slice, slice]]:
    size = min(WINDOW_PX, max(32, min(is_valid.shape) // 2))
    size = min(size, *is_valid.shape)
    starts = [np.arange(0, n - size + 1, max(size // 2, 1)) for n in is_valid.shape]
    windows = [(slice(y, y + size), slice(x, x + size)) for y in starts[0] for x in starts[1]]
    usable = [w for w in windows if is_valid[w].mean() > 0.6]
    step = max(1, int(np.ceil(len(usable) / MAX_WINDOWS)))
    return usable[::step]


def _correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    taper = np.outer(np.hanning(first.shape[0]), np.hanning(first.shape[1]))
    spectrum = fft.rfft2(first * taper) * np.conj(fft.rfft2(second * taper))
    # Full whitening lets noise frequencies vote as loudly as real ones; the square root keeps the peak narrow.
    spectrum /= np.sqrt(np.abs(spectrum)) + 1e-9
    surface = fft.irfft2(spectrum, s=first.shape)
    return surface / (surface.std() + 1e-9)


def _centre(surface: np.ndarray, radius: int) -> np.ndarray:
    rolled = np.roll(surface, (radius, radius), axis=(0, 1))
    return rolled[: 2 * radius + 1, : 2 * radius + 1]


def _peak(surface: np.ndarray) -> tuple[float, float, float]:
    """Return (y, x) of the maximum relative to the centre, refined by parabolas, and its height in robust sigmas."""
    # Smoothed, the peak is wide enough for a parabola: without it sub-pixel shifts lean to whole pixels by 0.1 px.
    surface = ndimage.gaussian_filter(surface, sigma=1.0)
    row, column = np.unravel_index(np.argmax(surface), surface.shape)
    spread = 1.4826 * np.median(np.abs(surface - np.median(surface))) + 1e-9
    height = (surface[row, column] - np.median(surface)) / spread
    radius = surface.shape[0] // 2
    y = row - radius + _parabola(surface[:, column], int(row))
    x = column - radius + _parabola(surface[row], int(column))
    return float(y), float(x), float(height)


def _parabola(values: np.ndarray, at: int) -> float:
    if not 0 < at < len(values) - 1:
        return 0.0
    left, middle, right = values[at - 1 : at + 2]
    curvature = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / curvature, -0.5, 0.5)) if curvature < 0 else 0.0
