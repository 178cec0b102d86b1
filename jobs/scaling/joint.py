"""One pair of exponents for the losses of several sensors: L_s(N, D) = E_s + A_s / N^alpha + B_s / D^beta.

Losses of different sensors are not on one scale, so each has its own E, A and B; what is shared is how fast more parameters
and more samples help. By variable projection, as `law.projected_fit`; intervals from resampled runs, the same for all sensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from jobs.scaling.evidence import INTERVAL, LEAST_VALUES, MOST_RATIO, PROPERTIES, NotIdentifiable, below_noise, effects, too_little
from jobs.scaling.law import EXPONENTS, Law, Runs, linear_part

COARSE = np.geomspace(*EXPONENTS, 12)


@dataclass(frozen=True)
class JointLaw:
    """Shared exponents with their 95 % intervals, and each sensor's law."""

    size_exponent: float
    data_exponent: float
    size_interval: tuple[float, float]
    data_interval: tuple[float, float]
    laws: dict[str, Law]


def fit_joint(runs: Mapping[str, Runs], num_draws: int = 60, seed: int = 0) -> JointLaw:
    """Return the law of several losses of the same runs; raise NotIdentifiable where an exponent cannot be told."""
    if reason := next((reason for of in runs.values() if (reason := too_little(of))), ""):
        raise NotIdentifiable(f"no joint law from these runs: {reason}")
    first = next(iter(runs.values()))
    alpha, beta = _exponents(runs)
    found = {name: linear_part(of, alpha, beta) for name, of in runs.items()}
    laws = {name: law for name, (_, law) in found.items()}
    numbers = 3 * len(runs) + 2  # a floor and two scales each, and the exponents
    noise = float(np.sqrt(sum(residual for residual, _ in found.values()) / max(1, len(first) * len(runs) - numbers)))
    for name in PROPERTIES:
        effect = float(np.mean([effects(of, laws[sensor])[name] for sensor, of in runs.items()]))
        if reason := below_noise(name, effect, noise):
            raise NotIdentifiable(f"no joint law from these runs: {reason}")
    rng = np.random.default_rng(seed)
    drawn: list[tuple[float, float]] = []
    while len(drawn) < num_draws:
        chosen = rng.integers(len(first), size=len(first))
        if min(len(np.unique(values[chosen])) for values in (first.parameters, first.samples)) >= LEAST_VALUES:
            drawn.append(_exponents({name: of[chosen] for name, of in runs.items()}))
    limits = np.percentile(drawn, INTERVAL, axis=0).T
    for name, (low, high) in zip(("size", "data"), limits):
        if low <= EXPONENTS[0] * 1.01 or high >= EXPONENTS[1] * 0.99 or high > MOST_RATIO * low:
            raise NotIdentifiable(
                f"no joint law from these runs: the exponent of {name} lies between {low:.2g} and {high:.2g} at 95 %"
            )
    size, data = ((float(low), float(high)) for low, high in limits)
    return JointLaw(alpha, beta, size, data, laws)


def _exponents(runs: Mapping[str, Runs]) -> tuple[float, float]:
    def cost(alpha: float, beta: float) -> float:
        return sum(linear_part(of, alpha, beta)[0] for of in runs.values())

    start = min(((a, b) for a in COARSE for b in COARSE), key=lambda pair: cost(*pair))
    bounds, options = [np.log(EXPONENTS)] * 2, {"xatol": 1e-3, "fatol": 1e-12}
    found = minimize(lambda x: cost(*np.exp(x)), np.log(start), method="Nelder-Mead", bounds=bounds, options=options)
    alpha, beta = np.exp(found.x)
    return float(alpha), float(beta)
