"""How far a score could lie elsewhere with other test samples: the bootstrap (Efron 1979), 95 %.

Samples that are cut from one place are alike, so places are drawn, with replacement, where there are enough of them.
"""

from collections.abc import Sequence

import numpy as np

from jobs.evaluation.metrics import Outcome

RESAMPLES = 200
MIN_PLACES = 10
"""With fewer places than this, how they differ says little; samples are drawn then, and the interval is of these places only."""
BOUNDS = (2.5, 97.5)


def units_of(outcome: Outcome) -> tuple[str, list[np.ndarray]]:
    """Return what is drawn, 'places' or 'samples', and the numbers of each one's samples."""
    names, inverse = np.unique(outcome.place, return_inverse=True)
    if MIN_PLACES <= len(names) < len(outcome):
        return "places", [np.flatnonzero(inverse == number) for number in range(len(names))]
    return "samples", list(np.arange(len(outcome))[:, None])


def draws(outcome: Outcome, seed: int, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Return the samples of each resample: of the same places for outcomes with the same places, so that these can be compared."""
    rng, (_, units) = np.random.default_rng(seed), units_of(outcome)
    return [np.concatenate([units[i] for i in rng.integers(len(units), size=len(units))]) for _ in range(resamples)]


def intervals(outcome: Outcome, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Return metric -> (low, high), between which 95 % of the resamples' scores lie; NaN where none is defined."""
    found = [outcome.take(chosen).scores() for chosen in draws(outcome, seed)]
    return {name: _bounds(np.array([scores[name] for scores in found])) for name in found[0]}


def gain(own: Sequence[Outcome], other: Sequence[Outcome], metric: str) -> tuple[float, float, float]:
    """Return by how much one model's score is larger than another's, and the bounds of that: a mean over pairs of seeds.

    Both answer the same samples, and each resample is scored for both: what makes samples hard for both is no uncertainty.
    """
    found = [mine.scores()[metric] - theirs.scores()[metric] for mine, theirs in zip(own, other)]
    drawn = [
        [mine.take(chosen).scores()[metric] - theirs.take(chosen).scores()[metric] for chosen in draws(mine, 0)]
        for mine, theirs in zip(own, other)
    ]
    return float(np.mean(found)), *_bounds(np.mean(drawn, axis=0))


def _bounds(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, BOUNDS)
    return float(low), float(high)
