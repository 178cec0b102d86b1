"""How far a fitted law can be believed: whether the runs can tell its numbers apart at all, intervals, forecasts of held-out runs.

Published intervals of such fits were far too narrow (Besiroglu et al. 2024, arXiv 2404.10102); these come from fitting resampled
runs. Where the runs cannot support a law that is said instead of a number.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields

import numpy as np

from jobs.scaling.law import EXPONENTS, Law, Runs, robust_fit, robust_fits
from pipeline.errors import InputError

LEAST_VALUES, LEAST_RUNS, LEAST_SPAN = 3, 8, 2.0
MOST_CORRELATION = 0.9
"""Of log N and log D: on a ladder where data grow with size the two terms cannot be told apart."""
MOST_RATIO = 8.0
"""Of an exponent's upper to its lower limit, beyond which it is as good as unknown."""
NOISES = 2.0
"""Standard deviations of the residuals that a term must make over the grid."""
INTERVAL = (2.5, 97.5)
PROPERTIES = ("size", "data")


class NotIdentifiable(InputError):
    """Runs that cannot support the law; the message says which and what would."""


@dataclass(frozen=True)
class Fit:
    """A law, the laws of resampled runs, and the standard deviation of log residuals."""

    law: Law
    draws: tuple[Law, ...]
    noise: float

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95 % interval of each of the law's numbers."""
        limits = np.percentile([astuple(draw) for draw in self.draws], INTERVAL, axis=0)
        return {field.name: (float(low), float(high)) for field, low, high in zip(fields(Law), *limits)}

    def forecast(self, parameters: float, samples: float) -> tuple[float, float, float]:
        """Return the loss of a run that was not made, with its 95 % interval."""
        low, high = np.percentile([draw.loss(parameters, samples) for draw in self.draws], INTERVAL)
        return float(self.law.loss(parameters, samples)), float(low), float(high)


def fit_law(runs: Runs, num_draws: int = 200, seed: int = 0, fit: Callable[[Runs], Law] = robust_fit) -> Fit:
    """Return the law of `runs` with its resampled fits; raise NotIdentifiable where they cannot support one."""
    if reason := too_little(runs):
        raise NotIdentifiable(f"no law from these runs: {reason}")
    law, rng = fit(runs), np.random.default_rng(seed)
    noise = float(np.std(np.log(runs.loss / law.loss(runs.parameters, runs.samples)), ddof=min(5, len(runs) - 1)))
    drawn = _resamples(runs, num_draws, rng)
    if fit is robust_fit:
        draws = robust_fits(runs, np.stack([np.bincount(chosen, minlength=len(runs)) for chosen in drawn]), law)
    else:
        draws = [fit(runs[chosen]) for chosen in drawn]
    found = Fit(law, tuple(draws), noise)
    if reason := _too_vague(runs, found):
        raise NotIdentifiable(f"no law from these runs: {reason}")
    return found


def extrapolation(runs: Runs, num_held: int, num_draws: int = 200, seed: int = 0) -> list[dict[str, float]]:
    """Fit without the `num_held` runs of most parameters x samples; return their losses, forecasts and relative errors."""
    order = np.argsort(runs.parameters * runs.samples, kind="stable")
    held, fit = order[len(order) - num_held :], fit_law(runs[order[: len(order) - num_held]], num_draws, seed)
    found = []
    for run in held:
        said, low, high = fit.forecast(float(runs.parameters[run]), float(runs.samples[run]))
        true = float(runs.loss[run])
        found.append({"parameters": float(runs.parameters[run]), "samples": float(runs.samples[run]), "loss": true})
        found[-1] |= {"forecast": said, "low": low, "high": high, "error": said / true - 1}
    return found


def _resamples(runs: Runs, num_draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return indices of as many runs drawn with replacement, each time of enough different sizes to fit."""
    drawn: list[np.ndarray] = []
    while len(drawn) < num_draws:
        chosen = rng.integers(len(runs), size=len(runs))
        if min(len(np.unique(values[chosen])) for values in (runs.parameters, runs.samples)) >= LEAST_VALUES:
            drawn.append(chosen)
    return drawn


def too_little(runs: Runs) -> str:
    """Return in words why no law can be told from runs of these sizes, nothing if one may be."""
    if not (np.isfinite(runs.loss).all() and (runs.loss > 0).all()):
        return "losses must be positive and finite; leave out runs that failed"
    for name, values in (("parameters", runs.parameters), ("samples", runs.samples)):
        distinct = len(np.unique(values))
        if distinct < LEAST_VALUES or values.max() / values.min() < LEAST_SPAN:
            span = f"{distinct} values of {name} over a factor of {values.max() / values.min():.3g}"
            return (
                f"they have {span}, expected at least {LEAST_VALUES} over a factor of {LEAST_SPAN:g}; add smaller and larger ones"
            )
    if len(runs) < LEAST_RUNS:
        return f"they are {len(runs)}, expected at least {LEAST_RUNS} for its five numbers; add seeds or sizes"
    correlation = abs(float(np.corrcoef(np.log(runs.parameters), np.log(runs.samples))[0, 1]))
    if correlation > MOST_CORRELATION:
        return f"parameters and samples grow together (correlation of logarithms {correlation:.2f}); run sizes on the same samples"
    return ""


def _too_vague(runs: Runs, fit: Fit) -> str:
    intervals = fit.intervals()
    for name, effect in effects(runs, fit.law).items():
        if reason := below_noise(name, effect, fit.noise):
            return reason
        low, high = intervals[f"{name}_exponent"]
        if low <= EXPONENTS[0] * 1.01 or high >= EXPONENTS[1] * 0.99 or high > MOST_RATIO * low:
            return f"the exponent of {name} lies between {low:.2g} and {high:.2g} at 95 %; widen its range or add seeds"
    return ""


def effects(runs: Runs, law: Law) -> dict[str, float]:
    """Return what size and data change of the loss over the runs, as shares of it."""
    spans = {
        "size": law.size_scale * runs.parameters**-law.size_exponent,
        "data": law.data_scale * runs.samples**-law.data_exponent,
    }
    return {name: float(np.ptp(spans[name])) / float(np.median(runs.loss)) for name in PROPERTIES}


def below_noise(name: str, effect: float, noise: float) -> str:
    """Return in words that an effect cannot be seen in the residuals, nothing if it can."""
    if effect >= NOISES * noise:
        return ""
    return f"{name} changes the loss by {effect:.2%}, residuals by {noise:.2%}; widen its range or add seeds"
