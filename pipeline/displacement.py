"""What many measured window shifts say together: one smooth displacement, no more complicated than the evidence supports.

Robust affine fit (random samples, then reweighting), then the simplest of shift, affine and affine plus local field
that predicts left-out windows as well as the best of them. Pixels in, pixels out; metres and files are elsewhere.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from pipeline.matching import Points

SAMPLES = 200
"""Random triples of windows tried as an affine, and single windows tried as a shift."""
MAX_JUDGES = 400
"""Windows that hypotheses are tried on."""
TOLERANCE_PX = 1.0
"""A window that far from a hypothesis neither supports nor refutes it."""
NEIGHBOURS = 8
NEIGHBOUR_PX = 0.5
"""Windows side by side see half of the same ground; so near they must be to tell of one smooth displacement."""
MAX_STRETCH = 0.08
"""Affine hypotheses that stretch, shear or turn by more are left out as chance."""
EVIDENCE = 12.0
"""Twice the log-likelihood that a more complicated model must gain on left-out windows."""
REACHES_SPACINGS = (6.0, 3.0, 1.5)
"""Widths of the local field's kernel that are tried, in spacings between windows."""
SHRINKAGE = 1.0
"""Weight, in windows, of 'no local deviation' against what windows near a place say."""


@dataclass(frozen=True)
class Field:
    """Displacement (dy, dx) in px of the reference's grid at any (y, x): affine, plus kernel means of residuals at knots."""

    origin: np.ndarray
    coefficients: np.ndarray
    """(3, 2): shift at `origin`, its change per px down, its change per px right."""
    knots: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    residuals: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    reach_px: float = 1.0

    @property
    def kind(self) -> str:
        if len(self.knots):
            return "local"
        return "affine" if self.coefficients[1:].any() else "shift"

    def at(self, places: np.ndarray) -> np.ndarray:
        """Return (N, 2) displacement at (N, 2) places."""
        smooth = _design(places, self.origin) @ self.coefficients
        return smooth + _kernel_mean(places, self.knots, self.residuals, self.reach_px) if len(self.knots) else smooth

    def then_stretched(self, stretch: np.ndarray) -> "Field":
        """Return the field against an image of which this one's image shows at p what lies at p * stretch."""
        first = stretch * (self.origin + self.coefficients[0]) - self.origin
        slopes = stretch * (np.eye(2) + self.coefficients[1:]) - np.eye(2)
        return Field(self.origin, np.concatenate([first[None], slopes]), self.knots, self.residuals * stretch, self.reach_px)


@dataclass(frozen=True)
class Fit:
    """The field, which windows agree with it, and `error_px`, how far it misses windows left out of it (robust rms)."""

    field: Field
    is_inlier: np.ndarray
    error_px: float


def constant(shift: np.ndarray) -> Field:
    return Field(np.zeros(2), np.stack([shift, np.zeros(2), np.zeros(2)]))


def fit(
    points: Points, size_px: int, spacing_px: int, generator: np.random.Generator, reaches: tuple[float, ...] = REACHES_SPACINGS
) -> Fit | None:
    """Return the displacement that most windows of `size_px`, `spacing_px` apart, agree on; None where no three do.

    `reaches` are the widths of local fields to try, in spacings; none: only a shift or an affine.
    """
    if len(points) < 3:
        return None
    origin = points.centre.mean(axis=0)
    design, weight = _design(points.centre, origin), np.clip(points.height, 1e-3, 20)  # of flat windows the height is zero
    judges = generator.permutation(len(points))[:MAX_JUDGES]
    seen = design[judges], points.shift[judges], weight[judges]
    best = max(_hypotheses(*seen, generator), key=lambda c: _support(seen[0] @ c, *seen[1:]))
    is_inlier = _supporters(design, points.shift, weight, best) | _agrees_with_neighbours(points)
    if is_inlier.sum() < 3:
        return None
    inner, kept = points[is_inlier], weight[is_inlier]
    candidates = [_shift_only(inner, kept, origin)]
    if is_inlier.sum() >= 12:
        candidates.append(_affine(inner, kept, origin))
    if is_inlier.sum() >= 24:
        candidates += [_local(inner, kept, origin, size_px, reach * spacing_px) for reach in reaches]
    # Windows that overlap are no independent witnesses.
    witnesses = len(inner) * min(1.0, (spacing_px / size_px) ** 2)
    chosen, error = candidates[0]
    for model, left_out in candidates[1:]:
        if 2 * witnesses * np.log((error + 1e-3) / (left_out + 1e-3)) > EVIDENCE:
            chosen, error = model, left_out
    return Fit(chosen, is_inlier, float(error))


def _design(places: np.ndarray, origin: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(places)), places - origin])


def _hypotheses(design: np.ndarray, shift: np.ndarray, weight: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Return (3, 2) coefficients: one constant per window, and affines through triples drawn by weight."""
    constants = [np.stack([s, np.zeros(2), np.zeros(2)]) for s in shift[np.argsort(-weight)[:SAMPLES]]]
    share = weight / weight.sum() if weight.sum() else None
    drawn = generator.choice(len(shift), size=(SAMPLES, 3), p=share)
    affines, smallest = [], 1e-3 * np.ptp(design[:, 1:], axis=0).prod()
    for triple in drawn:
        if len(set(triple.tolist())) == 3 and abs(np.linalg.det(design[triple])) > smallest:
            coefficients = np.linalg.solve(design[triple], shift[triple])
            if np.abs(coefficients[1:]).max() <= MAX_STRETCH:
                affines.append(coefficients)
    return constants + affines


def _support(predicted: np.ndarray, shift: np.ndarray, weight: np.ndarray) -> float:
    distance = ((predicted - shift) ** 2).sum(axis=1)
    return float((weight * np.exp(-distance / (2 * TOLERANCE_PX**2))).sum())


def _supporters(design: np.ndarray, shift: np.ndarray, weight: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return which windows are within the limit of an affine reweighted by Tukey's biweight from `start`."""
    coefficients, limit = start, 3 * TOLERANCE_PX
    for _ in range(10):
        distance = np.linalg.norm(design @ coefficients - shift, axis=1)
        near = distance < limit
        if near.sum() < 3:
            return near
        limit = float(np.clip(4.0 * 1.4826 * np.median(distance[near]), 0.25, 3 * TOLERANCE_PX))
        robust = weight * np.clip(1 - (distance / limit) ** 2, 0, None) ** 2
        if (robust > 0).sum() >= 6:
            coefficients = _least_squares(design, shift, robust)
        elif (robust > 0).any():
            coefficients = np.stack([np.average(shift, axis=0, weights=robust), np.zeros(2), np.zeros(2)])
    return np.linalg.norm(design @ coefficients - shift, axis=1) < limit


def _agrees_with_neighbours(points: Points) -> np.ndarray:
    """Return which windows lie close to the median of their neighbours, most of which must do so too.

    Finds the windows that a local displacement takes away from any affine.
    """
    if len(points) < 4 * NEIGHBOURS:
        return np.zeros(len(points), bool)
    nearest = cKDTree(points.centre).query(points.centre, NEIGHBOURS + 1)[1]
    around = points.shift[nearest]
    distance = np.linalg.norm(around - np.median(around, axis=1, keepdims=True), axis=-1)
    return (distance[:, 0] < NEIGHBOUR_PX) & (np.median(distance, axis=1) < NEIGHBOUR_PX / 2)


def _least_squares(design: np.ndarray, shift: np.ndarray, weight: np.ndarray) -> np.ndarray:
    root = np.sqrt(weight)[:, None]
    return np.linalg.lstsq(design * root, shift * root, rcond=None)[0]


def _robust_rms(residuals: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.minimum((residuals**2).sum(axis=1), 9 * np.median((residuals**2).sum(axis=1))))))


def _shift_only(points: Points, weight: np.ndarray, origin: np.ndarray) -> tuple[Field, float]:
    mean = np.average(points.shift, axis=0, weights=weight)
    left_out = (points.shift - mean) / (1 - weight / weight.sum())[:, None]
    return Field(origin, np.stack([mean, np.zeros(2), np.zeros(2)])), _robust_rms(left_out)


def _affine(points: Points, weight: np.ndarray, origin: np.ndarray) -> tuple[Field, float]:
    design = _design(points.centre, origin)
    coefficients = _least_squares(design, points.shift, weight)
    hat = np.einsum("ni,ij,nj->n", design, np.linalg.pinv(design.T @ (design * weight[:, None])), design) * weight
    left_out = (points.shift - design @ coefficients) / np.clip(1 - hat, 0.1, 1)[:, None]
    return Field(origin, coefficients), _robust_rms(left_out)


def _local(points: Points, weight: np.ndarray, origin: np.ndarray, size_px: int, reach: float) -> tuple[Field, float]:
    smooth, _ = _affine(points, weight, origin)
    residuals = points.shift - smooth.at(points.centre)
    left_out = residuals - _kernel_mean(points.centre, points.centre, residuals, reach, leave_out_px=size_px)
    return Field(origin, smooth.coefficients, points.centre, residuals, reach), _robust_rms(left_out)


def _kernel_mean(
    places: np.ndarray, knots: np.ndarray, values: np.ndarray, reach_px: float, leave_out_px: float = 0.0
) -> np.ndarray:
    """Return (N, 2) Gaussian-weighted means of the knots' values, drawn to zero where few knots are near.

    Knots nearer than `leave_out_px` do not count: what they would say of their own place proves nothing.
    """
    found = np.empty((len(places), 2))
    for first in range(0, len(places), 1024):
        part = slice(first, first + 1024)
        distance = ((places[part, None] - knots) ** 2).sum(axis=-1)
        kernel = np.exp(-distance / (2 * reach_px**2))
        kernel *= distance >= leave_out_px**2
        found[part] = kernel @ values / (kernel.sum(axis=1) + SHRINKAGE)[:, None]
    return found
