"""Which learning rate is best at each width, whether a rule carries one width's to the others, and what following it costs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jobs.sweeping.rows import LOSSES

DRAWS = 200
NUM_TRIED = 60
"""Rates at which a rule may begin."""
BOUNDS = (2.5, 97.5)


@dataclass(frozen=True)
class RateRule:
    """Best rate by width (a parabola of the loss over log rate, inside what was tried), and the power of width that it goes with.

    exponent: the best rate goes as width^-exponent, with its 95 % interval over seeds (of one seed, none). is_inside: of each
    width, whether rates on both sides of the best were tried. rules: of each exponent asked about, the rate at the smallest width
    from which it does best, and how much larger the loss then is than at each width's own best, in the mean over widths.
    """

    best: dict[int, float]
    is_inside: dict[int, bool]
    exponent: float
    interval: tuple[float, float]
    rules: dict[float, tuple[float, float]]


def rate_rule(rows: pd.DataFrame, name: str, asked: tuple[float, ...]) -> RateRule:
    """Return what runs of several widths and rates say, by the loss called `name`."""
    curves = _curves(rows, name)
    best = {width: _vertex(*curve) for width, curve in curves.items()}
    rng, drawn = np.random.default_rng(0), []
    seeds = rows["seed"].unique()
    for _ in range(DRAWS if len(seeds) > 1 else 1):
        chosen = rng.choice(seeds, len(seeds))
        resampled = pd.concat([rows[rows["seed"] == seed] for seed in chosen])
        drawn.append(_exponent({width: _vertex(*curve)[0] for width, curve in _curves(resampled, name).items()}))
    low, high = np.percentile(drawn, BOUNDS)
    rules = {exponent: _best_rule(curves, exponent) for exponent in asked}
    rates = {width: found for width, (found, _) in best.items()}
    inside = {width: is_inside for width, (_, is_inside) in best.items()}
    return RateRule(rates, inside, _exponent(rates), (float(low), float(high)), rules)


def _curves(rows: pd.DataFrame, name: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return width -> (rates, mean loss over seeds)."""
    mean = rows.groupby(["width", "learning_rate"])[LOSSES + name].mean()
    return {int(w): (of.index.get_level_values(1).to_numpy(float), of.to_numpy(float)) for w, of in mean.groupby(level=0)}


def _vertex(rates: np.ndarray, loss: np.ndarray) -> tuple[float, bool]:
    """Return the rate of least loss by a parabola through the best and its neighbours, and whether it lies inside."""
    number = int(np.argmin(loss))
    if number in (0, len(loss) - 1):
        return float(rates[number]), False
    part = slice(number - 1, number + 2)
    curve = np.polynomial.Polynomial.fit(np.log(rates[part]), loss[part], 2)
    return float(np.exp(curve.deriv().roots()[0].real)), True


def _best_rule(curves: dict[int, tuple[np.ndarray, np.ndarray]], exponent: float) -> tuple[float, float]:
    """Return the rate at the smallest width, and what rates that go as width^-exponent from it cost; inside what was tried.

    Between rates that were tried the loss is interpolated over log rate.
    """
    smallest = min(curves)
    found = (float("nan"), float("inf"))
    lowest, highest = curves[smallest][0][[0, -1]]
    for rate in np.geomspace(lowest, highest, NUM_TRIED):
        losses = []
        for width, (rates, loss) in curves.items():
            given = rate * (smallest / width) ** exponent
            if not rates[0] * 0.999 <= given <= rates[-1] * 1.001:
                break
            losses.append(float(np.interp(np.log(given), np.log(rates), loss)) / float(loss.min()) - 1)
        if len(losses) == len(curves) and np.mean(losses) < found[1]:
            found = float(rate), float(np.mean(losses))
    return found


def _exponent(best: dict[int, float]) -> float:
    return -float(np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)[0])


def summary(rule: RateRule) -> dict[str, Any]:
    return {
        "best_rate": {str(width): rate for width, rate in rule.best.items()},
        "is_inside": {str(width): inside for width, inside in rule.is_inside.items()},
        "rate_exponent": rule.exponent,
        "rate_exponent_interval": rule.interval,
        "rules": {f"{exponent:g}": {"smallest_rate": rate, "regret": cost} for exponent, (rate, cost) in rule.rules.items()},
    }


def words(rule: RateRule) -> list[str]:
    low, high = rule.interval
    over = f" ({low:.2f} to {high:.2f} over seeds)" if high > low else " (one seed: no interval)"
    least = min(rule.rules, key=lambda exponent: rule.rules[exponent][1])
    costs = ", ".join(f"p = {exponent:g}: {cost:+.2%}" for exponent, (_, cost) in sorted(rule.rules.items()))
    said = [
        f"The best rate goes as width^-p, p = {rule.exponent:.2f}{over}.",
        f"Mean loss above each width's own best, of rates that go as width^-p: {costs}; p = {least:g} costs least.",
    ]
    if outside := [width for width, inside in rule.is_inside.items() if not inside]:
        said.append(f"At width {', '.join(map(str, outside))} the best rate is at the edge of those tried: its own may lie beyond.")
    return said
