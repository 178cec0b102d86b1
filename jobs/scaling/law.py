"""The law L(N, D) = E + A / N^alpha + B / D^beta of a loss that falls with parameters and samples, and two ways to fit it.

Decides how runs become a law: `robust_fit` is Hoffmann et al. 2022 (arXiv 2203.15556, approach 3: Huber loss of log residuals,
many starts), `projected_fit` variable projection (for given exponents E, A and B are linear: non-negative least squares inside
a search over exponents; no start to choose). How far a fit can be believed is `evidence.py`'s.
Legend: R runs.
"""

from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize, nnls

DELTA = 1e-3
"""Where the Huber loss of a log residual turns from square to straight (Hoffmann et al. 2022)."""
EXPONENTS = (0.02, 3.0)
"""Least and largest exponent that is searched."""
GRID = np.geomspace(*EXPONENTS, 22)
NUM_STARTS = 8
NUM_ITERATIONS = 150


@dataclass(frozen=True)
class Runs:
    """Finished runs: parameters N, samples D seen in training, and loss > 0 of each, (R,)."""

    parameters: np.ndarray
    samples: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, chosen: np.ndarray) -> "Runs":
        return Runs(self.parameters[chosen], self.samples[chosen], self.loss[chosen])

    @cached_property
    def centred(self) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of N and D beside their means."""
        size, data = np.log(self.parameters), np.log(self.samples)
        return size - size.mean(), data - data.mean()


@dataclass(frozen=True)
class Law:
    """E, A, alpha, B, beta of the loss; A and B for N in parameters and D in samples."""

    floor: float
    size_scale: float
    size_exponent: float
    data_scale: float
    data_exponent: float

    def loss(self, parameters: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
        """Return the loss of runs of these sizes."""
        size = self.size_scale * np.asarray(parameters, float) ** -self.size_exponent
        return self.floor + size + self.data_scale * np.asarray(samples, float) ** -self.data_exponent

    def distance(self, runs: Runs) -> float:
        """Return the sum of Huber losses of log residuals."""
        return float(_huber(np.log(self.loss(runs.parameters, runs.samples) / runs.loss)).sum())


def robust_fit(runs: Runs) -> Law:
    """Return the law of least Huber loss of log residuals, from the best of a grid of exponents."""
    starts = np.stack([_to_logs(runs, linear_part(runs, *pair)[1]) for pair in _exponents_by_distance(runs)[:NUM_STARTS]])
    found = _descend(runs, starts, np.ones((len(starts), len(runs))))
    return min((_from_logs(runs, x) for x in found), key=lambda law: law.distance(runs))


def robust_fits(runs: Runs, counts: np.ndarray, start: Law) -> list[Law]:
    """Return what `robust_fit` finds beginning at `start` where run r counts counts[d, r] times, for each draw d."""
    starts = np.repeat(_to_logs(runs, start)[None], len(counts), 0)
    return [_from_logs(runs, x) for x in _descend(runs, starts, counts)]


def projected_fit(runs: Runs) -> Law:
    """Return the law of least squares of relative residuals, by variable projection."""
    best = np.log(_exponents_by_distance(runs)[0])
    bounds = [np.log(EXPONENTS)] * 2
    found = minimize(
        lambda x: linear_part(runs, *np.exp(x))[0],
        best,
        method="Nelder-Mead",
        bounds=bounds,
        options={"xatol": 1e-5, "fatol": 1e-14},
    )
    return linear_part(runs, *np.exp(found.x))[1]


def _exponents_by_distance(runs: Runs) -> list[tuple[float, float]]:
    pairs = [(a, b) for a in GRID for b in GRID]
    return sorted(pairs, key=lambda pair: linear_part(runs, *pair)[0])


def linear_part(runs: Runs, size_exponent: float, data_exponent: float) -> tuple[float, Law]:
    """Return the least sum of squared relative residuals with these exponents, and the law that has it."""
    size, data = runs.centred
    columns = np.stack([np.ones(len(runs)), np.exp(-size_exponent * size), np.exp(-data_exponent * data)], 1)
    weights, residual = nnls(columns / runs.loss[:, None], np.ones(len(runs)))
    return residual**2, _from_centred(runs, weights, size_exponent, data_exponent)


def _from_centred(runs: Runs, weights: np.ndarray, size_exponent: float, data_exponent: float) -> Law:
    size_level, data_level = np.log(runs.parameters).mean(), np.log(runs.samples).mean()
    scales = weights[1] * np.exp(size_exponent * size_level), weights[2] * np.exp(data_exponent * data_level)
    return Law(float(weights[0]), float(scales[0]), float(size_exponent), float(scales[1]), float(data_exponent))


def _from_logs(runs: Runs, x: np.ndarray) -> Law:
    return _from_centred(runs, np.exp(x[:3]), *x[3:])


def _to_logs(runs: Runs, law: Law) -> np.ndarray:
    """Return (5,): logarithms of E and of both terms at the runs' mean sizes, and the exponents."""
    floor, a, alpha, b, beta = astuple(law)
    terms = floor, a * np.exp(-alpha * np.log(runs.parameters).mean()), b * np.exp(-beta * np.log(runs.samples).mean())
    return np.array([*np.log(np.maximum(terms, _least(runs))), alpha, beta])


def _least(runs: Runs) -> float:
    """Return what a term that is 0 counts as: it has a logarithm then."""
    return 1e-6 * float(runs.loss.min())


def _descend(runs: Runs, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (S, 5), where the valleys end that `starts` (S, 5) lie in, run r counting counts[s, r] times.

    All at once: damped Gauss-Newton steps, residuals beyond DELTA weighted down to what the Huber loss makes of them.
    """
    size, data = runs.centred
    target, x = np.log(runs.loss), starts.copy()
    lowest = np.array([*[np.log(_least(runs))] * 3, EXPONENTS[0], EXPONENTS[0]])
    highest = np.array([np.inf] * 3 + [EXPONENTS[1]] * 2)

    def cost_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        terms = np.stack([x[:, :1] + 0 * size, x[:, 1:2] - x[:, 3:4] * size, x[:, 2:3] - x[:, 4:] * data], 1)
        said = np.logaddexp.reduce(terms, 1)
        residual = said - target
        return (counts * _huber(residual)).sum(1), residual, np.exp(terms - said[:, None])

    damping = np.full(len(x), 1e-3)
    cost, residual, shares = cost_of(x)
    for _ in range(NUM_ITERATIONS):
        slopes = np.concatenate([shares, -shares[:, 1:2] * size, -shares[:, 2:] * data], 1)  # (S, 5, R)
        weights = counts * np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
        bend = np.einsum("sir,sr,sjr->sij", slopes, weights, slopes)
        bend += damping[:, None, None] * np.eye(5) * (np.einsum("sii->si", bend)[:, :, None] + 1e-12)
        step = np.linalg.solve(bend, np.einsum("sir,sr->si", slopes, weights * residual)[..., None])[..., 0]
        moved = np.clip(x - step, lowest, highest)
        found = cost_of(moved)
        is_better = found[0] < cost
        x, cost = np.where(is_better[:, None], moved, x), np.where(is_better, found[0], cost)
        residual = np.where(is_better[:, None], found[1], residual)
        shares = np.where(is_better[:, None, None], found[2], shares)
        damping = np.clip(np.where(is_better, damping / 3, damping * 5), 1e-12, 1e6)
    return x


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))
