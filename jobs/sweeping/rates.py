"""Which learning rate is best at each width, whether a rule carries one width's to the others, and what following it costs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jobs.sweeping.rows import LOSSES

DRAWS = 200
BOUNDS = (2.5, 97.5)


@dataclass(frozen=True)
class RateRule:
    """Best rate by width (a parabola of the loss over log rate, inside what was tried), and the power of width that it goes with.

    exponent: the best rate goes as width^-exponent, with its 95 % interval over seeds. is_inside: of each width, whether rates on
    both sides of the best were tried. regret: of each exponent asked about, how much larger the loss is at the rates that it
    gives, the middle width's own best being right, than at each width's own best, in the mean over widths.
    """

    best: dict[int, float]
    is_inside: dict[int, bool]
    exponent: float
    interval: tuple[float, float]
    regret: dict[float, float]


def rate_rule(rows: pd.DataFrame, name: str, asked: tuple[float, ...]) -> RateRule:
    """Return what runs of several widths and rates say, by the loss called `name`."""
    curves = _curves(rows, name)
    best = {width: _vertex(*curve) for width, curve in curves.items()}
    rng, drawn = np.random.default_rng(0), []
    seeds = rows["seed"].unique()
    for _ in range(DRAWS):
        chosen = rng.choice(seeds, len(seeds))
        resampled = pd.concat([rows[rows["seed"] == seed] for seed in chosen])
        drawn.append(_exponent({width: _vertex(*curve)[0] for width, curve in _curves(resampled, name).items()}))
    low, high = np.percentile(drawn, BOUNDS)
    widths = sorted(best)
    middle = widths[len(widths) // 2]
    regret = {}
    for exponent in asked:
        losses = []
        for width, curve in curves.items():
            given = best[middle][0] * (middle / width) ** exponent
            losses.append(_at(*curve, given) / _at(*curve, best[width][0]) - 1)
        regret[exponent] = float(np.mean(losses))
    rates = {width: found for width, (found, _) in best.items()}
    inside = {width: is_inside for width, (_, is_inside) in best.items()}
    return RateRule(rates, inside, _exponent(rates), (float(low), float(high)), regret)


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


def _at(rates: np.ndarray, loss: np.ndarray, rate: float) -> float:
    """Return the loss at a rate between those that were tried; beyond them, that of the nearest."""
    return float(np.interp(np.log(rate), np.log(rates), loss))


def _exponent(best: dict[int, float]) -> float:
    return -float(np.polyfit(np.log(list(best)), np.log(list(best.values())), 1)[0])


def summary(rule: RateRule) -> dict[str, Any]:
    return {
        "best_rate": {str(width): rate for width, rate in rule.best.items()},
        "is_inside": {str(width): inside for width, inside in rule.is_inside.items()},
        "rate_exponent": rule.exponent,
        "rate_exponent_interval": rule.interval,
        "regret_of_exponent": {f"{exponent:g}": value for exponent, value in rule.regret.items()},
    }


def words(rule: RateRule) -> list[str]:
    low, high = rule.interval
    tried = sorted(rule.regret, key=lambda exponent: rule.regret[exponent])
    said = [
        f"The best rate goes as width^-{rule.exponent:.2f} ({low:.2f} to {high:.2f} over seeds).",
        "Mean loss above each width's own best, if the middle width's best rate is carried to the others as width^-p: "
        + ", ".join(f"p = {exponent:g}: {rule.regret[exponent]:+.2%}" for exponent in sorted(rule.regret))
        + f"; p = {tried[0]:g} costs least.",
    ]
    if outside := [width for width, inside in rule.is_inside.items() if not inside]:
        said.append(f"At width {', '.join(map(str, outside))} the best rate is at the edge of those tried: its own may lie beyond.")
    return said
