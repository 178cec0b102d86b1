"""Estimate how far one image lies from another: (displacement, confidence, reason), never an exception, never a wild warp.

Coarse to fine: one shift from the average of all windows' correlations, then one shift per window, then the smooth
displacement that most windows agree on. Arrays on one pixel grid in, pixels out: which images are compared, and what is
done with the result, are decided in `coregister.py`.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, ndimage

from pipeline.displacement import Field, Fit, constant, fit
from pipeline.matching import Points, average_down, correlate, describe, peak, window_centres

SIGMA_PX = 1.0
WHITENING = 0.5
SMOOTHING_PX = 1.0
"""Scale of the gradients, share of whitening, low pass: of 18 combinations tried on simulated scenes, the one with the
least error for optical-optical pairs (0.02-0.03 px) that costs radar-optical nothing (docs/benchmarks.md)."""
WINDOW_PX = 64
FINE_RADIUS_PX = 5
COARSE_WINDOW_PX = 256
COARSE_SHIFT_PX = 24
"""Pixels are averaged down until the largest shift searched for is this small."""
MAX_COARSE_WINDOWS = 64
MAX_POINTS = 1200
MIN_VALID = 0.02
MIN_CONFIDENCE = 0.7
STRETCHES = tuple(1.05**k for k in range(-7, 8))
CLEAR_HEIGHT = 6.0
"""Peaks of pairs that match are above, those of other places (up to 4 sigma) below."""


@dataclass(frozen=True)
class Registration:
    """What was added to a tile's stated coordinates, in metres east and north of its CRS, with confidence 0..1 and reason.

    Without evidence enough the shift is zero and `reason` says why.
    """

    shift_x_m: float
    shift_y_m: float
    confidence: float
    reason: str

    @property
    def shift_m(self) -> tuple[float, float]:
        return self.shift_x_m, self.shift_y_m


REFERENCE = Registration(0.0, 0.0, 1.0, "reference")


@dataclass(frozen=True)
class Coarse:
    """One shift (dy, dx) of the whole, px, and its peak's height; `reason` where there is nothing to go on with."""

    shift_px: np.ndarray
    height: float
    reason: str | None = None


@dataclass(frozen=True)
class Match:
    """Displacement of one image against another in px; no field where there is not evidence enough, and why."""

    field: Field | None
    confidence: float
    reason: str
    points: Points | None = None


def match(
    reference: np.ndarray, moving: np.ndarray, reference_valid: np.ndarray, moving_valid: np.ndarray, max_shift_px: float
) -> Match:
    """Find where `moving` (bands, y, x) shows what `reference` (bands, y, x) shows, both on one grid, masks (y, x) bool.

    Where `max_shift_px` allows for it and nothing fits as it is, stretched images are tried too.
    """
    coarse = coarse_shift(reference, moving, reference_valid, moving_valid, max_shift_px)
    is_clear = coarse.height >= CLEAR_HEIGHT and not coarse.reason
    stretch = None if is_clear else _best_stretch(reference, moving, reference_valid, moving_valid, max_shift_px)
    if stretch is None:
        return conclude(tie_points(reference, moving, reference_valid, moving_valid, coarse), coarse)
    moving, moving_valid = _stretched(moving, moving_valid, stretch)
    coarse = coarse_shift(reference, moving, reference_valid, moving_valid, max_shift_px)
    found = conclude(tie_points(reference, moving, reference_valid, moving_valid, coarse), coarse)
    return replace(found, field=found.field.then_stretched(stretch)) if found.field else found


def coarse_shift(
    reference: np.ndarray, moving: np.ndarray, reference_valid: np.ndarray, moving_valid: np.ndarray, max_shift_px: float
) -> Coarse:
    """Find the one shift of the whole: on pixels averaged down until it is at most 24 of them, then on full ones around it."""
    for pixels, is_valid in ((reference, reference_valid), (moving, moving_valid)):
        if is_valid.mean() < MIN_VALID or min(is_valid.shape) < 32:
            return Coarse(np.zeros(2), 0.0, "hardly any valid pixels")
        if max(float(band[is_valid].std()) for band in pixels) < 1e-6:
            return Coarse(np.zeros(2), 0.0, "flat image")
    factor = max(1, min(int(np.ceil(max_shift_px / COARSE_SHIFT_PX)), min(reference_valid.shape) // 48))
    fixed, fixed_valid = _averaged_structure(reference, reference_valid, factor)
    moved, _ = _averaged_structure(moving, moving_valid, factor)
    radius = int(np.ceil(max_shift_px / factor)) + 1
    shift, height = _shift_of_all(fixed, moved, fixed_valid, np.zeros(2), COARSE_WINDOW_PX, radius)
    shift = shift * factor
    if factor > 1:
        fixed, moved = describe(reference, reference_valid, SIGMA_PX), describe(moving, moving_valid, SIGMA_PX)
        both = _jointly(reference_valid, moving_valid, shift)
        shift, height = _shift_of_all(fixed, moved, both, shift, 2 * WINDOW_PX, 2 * factor + 2)
    at_limit = np.abs(shift).max() > max_shift_px
    return Coarse(shift, height, f"shift at the search limit of {max_shift_px:g} px" if at_limit else None)


def _averaged_structure(pixels: np.ndarray, is_valid: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    smaller, smaller_valid = average_down(pixels, is_valid, factor)
    return describe(smaller, smaller_valid, SIGMA_PX), smaller_valid


def _shift_of_all(
    fixed: np.ndarray, moved: np.ndarray, is_valid: np.ndarray, guess: np.ndarray, size: int, radius: int
) -> tuple[np.ndarray, float]:
    """Return the highest point of the windows' mean surface, and its height: weak evidence of many windows adds up."""
    size = _even(min(size, *is_valid.shape))
    centres = window_centres(is_valid, size, size // 2, min_valid=0.3)
    centres = centres[:: max(1, len(centres) // MAX_COARSE_WINDOWS)]
    if not len(centres):
        return guess, 0.0
    whole = np.rint(guess).astype(int)
    batches = correlate(fixed, moved, centres, np.broadcast_to(whole, centres.shape), size, WHITENING, SMOOTHING_PX)
    spectrum = np.sum([s.sum(axis=0) for s, _ in batches], axis=0)[None]
    shift, height = peak(spectrum, fft.irfft2(spectrum, s=(size, size)), radius)
    return whole + shift[0], float(height[0])


def tie_points(
    reference: np.ndarray,
    moving: np.ndarray,
    reference_valid: np.ndarray,
    moving_valid: np.ndarray,
    coarse: Coarse,
    spacing_px: int = WINDOW_PX // 2,
) -> Points:
    """Measure one shift per window around the coarse one, then again around what the windows agree on, for least overlap lost."""
    nothing = Points(*(np.zeros(0) for _ in range(5)))
    if coarse.reason:
        return nothing
    size = _even(min(WINDOW_PX, *reference_valid.shape))
    centres = window_centres(_jointly(reference_valid, moving_valid, coarse.shift_px), size, spacing_px)
    if not len(centres):
        return nothing
    fixed, moved = describe(reference, reference_valid, SIGMA_PX), describe(moving, moving_valid, SIGMA_PX)
    points = _measure(fixed, moved, centres, constant(coarse.shift_px), size)
    agreed = fit(points, size, spacing_px, np.random.default_rng(0), reaches=())
    if agreed is None or np.abs(agreed.field.at(centres) - coarse.shift_px).max() < 1:
        return points
    return _measure(fixed, moved, centres, agreed.field, size)


def _measure(fixed: np.ndarray, moved: np.ndarray, centres: np.ndarray, field: Field, size: int) -> Points:
    guess = np.rint(field.at(centres)).astype(int)
    batches = correlate(fixed, moved, centres, guess, size, WHITENING, SMOOTHING_PX)
    shifts, heights = zip(*(peak(*batch, FINE_RADIUS_PX) for batch in batches))
    shift, place = guess + np.concatenate(shifts), centres.astype(float)
    points = Points(place[:, 0], place[:, 1], shift[:, 0], shift[:, 1], np.concatenate(heights))
    return points[points.height > 0]  # zero: one of the two is flat there


def conclude(points: Points, coarse: Coarse, spacing_px: int = WINDOW_PX // 2) -> Match:
    """Return the displacement that the windows agree on, and the probability that it is right to half a pixel."""
    if coarse.reason:
        return Match(None, 0.0, coarse.reason)
    found = fit(points, WINDOW_PX, spacing_px, np.random.default_rng(0))
    if found is None:
        return Match(None, 0.0, f"no three of {len(points)} windows agree", points)
    confidence = _confidence(found, len(points), coarse.height)
    evidence = f"{found.is_inlier.sum()} of {len(points)} windows within {found.error_px:.2f} px, peak {coarse.height:.0f} sigma"
    if confidence < MIN_CONFIDENCE:
        return Match(None, confidence, f"low confidence: {evidence}", points)
    return Match(found.field, confidence, f"{found.field.kind}: {evidence}", points)


def _confidence(found: Fit, num_windows: int, height: float) -> float:
    """Logistic regression on 624 simulated pairs, 375 of them of the same ground (tests/bench/bench_registration.py)."""
    agreeing = found.is_inlier.sum()
    share = np.clip(agreeing / num_windows, 1e-3, 0.99)
    score = 2.28 * np.log(share / (1 - share)) - 2.71 * np.log(found.error_px + 0.01) + 1.19 * np.log(max(height, 0.5))
    return round(float(1 / (1 + np.exp(1.24 - score - 0.09 * np.log(agreeing)))), 3)


def _best_stretch(
    reference: np.ndarray, moving: np.ndarray, reference_valid: np.ndarray, moving_valid: np.ndarray, max_shift_px: float
) -> np.ndarray | None:
    """Return the stretch (down, right) under which the averaged-down images match best; None where none does clearly.

    Tried are those that move an edge, seen from the middle, by no more than `max_shift_px`.
    """
    stretches = [s for s in STRETCHES if abs(s - 1) * min(reference_valid.shape) / 2 <= max_shift_px]
    if len(stretches) == 1 or min(reference_valid.mean(), moving_valid.mean()) < MIN_VALID:
        return None
    factor = max(1, min(reference_valid.shape) // 160)
    fixed, fixed_valid = _averaged_structure(reference, reference_valid, factor)
    small, small_valid = average_down(moving, moving_valid, factor)
    radius = int(np.ceil(max_shift_px / factor))

    def height(stretch: tuple[float, float]) -> float:
        moved = describe(*_stretched(small, small_valid, np.array(stretch)), SIGMA_PX)
        return _shift_of_all(fixed, moved, fixed_valid, np.zeros(2), COARSE_WINDOW_PX, radius)[1]

    best = max(itertools.product(stretches, stretches), key=height)
    if height(best) < CLEAR_HEIGHT:
        return None
    around = [1.05 ** (k / 4) for k in (-2, -1, 0, 1, 2)]
    return np.array(max(((best[0] * down, best[1] * right) for down in around for right in around), key=height))


def _stretched(pixels: np.ndarray, is_valid: np.ndarray, stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the image whose place p shows what the given one shows at p * stretch, places counted from the corner."""
    offset = 0.5 * stretch - 0.5  # pixel-is-area: array index = place - 0.5
    moved = [ndimage.affine_transform(band, stretch, offset, order=1, mode="nearest") for band in pixels]
    return np.stack(moved), ndimage.affine_transform(is_valid.astype(np.float32), stretch, offset, order=1) > 0.99


def _jointly(reference_valid: np.ndarray, moving_valid: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return where the reference is valid and so is the moving image `shift` further on."""
    y, x = (np.arange(n) + round(float(s)) for n, s in zip(reference_valid.shape, shift))
    inside = ((y >= 0) & (y < moving_valid.shape[0]))[:, None] & ((x >= 0) & (x < moving_valid.shape[1]))
    looked = moving_valid[np.clip(y, 0, moving_valid.shape[0] - 1)[:, None], np.clip(x, 0, moving_valid.shape[1] - 1)]
    return reference_valid & inside & looked


def _even(size: int) -> int:
    return 2 * (size // 2)
