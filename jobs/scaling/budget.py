"""What a budget of operations buys: the best size for it by a law, or read off runs that had the same budget.

Operations are those that were counted in the runs, never 6 N D: a masked encoder sees fewer tokens than its decoder.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from jobs.scaling.evidence import INTERVAL, Fit
from jobs.scaling.law import Law
from pipeline.errors import InputError

SAME_BUDGET = 1.1
"""Runs whose operations differ by less than this factor had the same budget."""


@dataclass(frozen=True)
class SampleCost:
    """Operations of a training sample as a power of the parameters, k N^p, fitted to what runs have counted."""

    factor: float
    power: float

    @classmethod
    def of(cls, parameters: np.ndarray, flops_per_sample: np.ndarray) -> "SampleCost":
        if len(np.unique(parameters)) < 2:
            raise InputError("operations of a sample are known for one size only; run another to see how they grow")
        power, level = np.polyfit(np.log(parameters), np.log(flops_per_sample), 1)
        return cls(float(np.exp(level)), float(power))

    def flops(self, parameters: np.ndarray | float) -> np.ndarray:
        return self.factor * np.asarray(parameters, float) ** self.power


@dataclass(frozen=True)
class Best:
    """Parameters and samples that a budget is best spent on, the loss then, and 95 % intervals of the first and the last."""

    parameters: float
    samples: float
    loss: float
    parameters_interval: tuple[float, float]
    loss_interval: tuple[float, float]


def best_size(fit: Fit, cost: SampleCost, flops: float) -> Best:
    """Return what `flops` operations are best spent on."""
    parameters = _best(fit.law, cost, flops)
    drawn = [(size, float(draw.loss(size, flops / cost.flops(size)))) for draw in fit.draws for size in [_best(draw, cost, flops)]]
    limits = np.percentile(drawn, INTERVAL, axis=0)
    samples = flops / float(cost.flops(parameters))
    loss = float(fit.law.loss(parameters, samples))
    sizes, losses = ((float(low), float(high)) for low, high in limits.T)
    return Best(parameters, samples, loss, sizes, losses)


def _best(law: Law, cost: SampleCost, flops: float) -> float:
    largest = (np.log(flops) - np.log(cost.factor)) / cost.power  # that sees one sample
    found = minimize_scalar(
        lambda size: float(law.loss(np.exp(size), flops / cost.flops(np.exp(size)))), bounds=(0.0, largest), method="bounded"
    )
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Valley:
    """The best size of one budget, read off a parabola through its runs; is_inside: they lie on both sides of it."""

    flops: float
    parameters: float
    loss: float
    is_inside: bool


def valleys(parameters: np.ndarray, flops: np.ndarray, loss: np.ndarray) -> list[Valley]:
    """Return one for each budget that at least three sizes had (IsoFLOP, Hoffmann et al. 2022, approach 2)."""
    order, found = np.argsort(flops, kind="stable"), []
    breaks = np.flatnonzero(np.diff(np.log(flops[order])) > np.log(SAME_BUDGET)) + 1
    for group in np.split(order, breaks):
        size = np.log(parameters[group])
        if len(np.unique(size)) < 3:
            continue
        curve = np.polynomial.Polynomial.fit(size, loss[group], 2)
        bend = float(curve.deriv(2)(0.0))
        vertex = float(curve.deriv().roots()[0].real) if bend > 0 else float(size[np.argmin(loss[group])])
        is_inside = bend > 0 and bool(size.min() < vertex < size.max())
        found.append(Valley(float(np.exp(np.log(flops[group]).mean())), float(np.exp(vertex)), float(curve(vertex)), is_inside))
    return found
