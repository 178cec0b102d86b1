"""Figures of what sweeps found."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jobs.figures import COLOURS
from jobs.scaling.budget import Valley
from jobs.sweeping.laws import LossLaw
from jobs.sweeping.rates import RateRule
from jobs.sweeping.rows import LOSSES


def ladder(rows: pd.DataFrame, found: Sequence[LossLaw]) -> Figure:
    """Return each loss over samples, a colour for each size, with the law where there is one."""
    columns = min(3, len(found))
    figure = Figure(figsize=(4.2 * columns, 3.4 * -(-len(found) // columns)), layout="constrained")
    sizes = sorted(rows["backbone_parameters"].unique())
    for number, law in enumerate(found):
        axis = figure.add_subplot(-(-len(found) // columns), columns, number + 1)
        for size, colour in zip(sizes, _shades(len(sizes))):
            is_size = law.runs.parameters == size
            data, loss = law.runs.samples[is_size], law.runs.loss[is_size]
            axis.plot(data, loss, "o", color=colour, markersize=4, label=f"N = {size:,.0f}")
            if law.fit is not None:
                line = np.geomspace(law.runs.samples.min(), law.runs.samples.max(), 60)
                axis.plot(line, law.fit.law.loss(size, line), color=colour, linewidth=1)
        axis.set(
            xscale="log",
            yscale="log",
            title=law.name if law.fit else f"{law.name}: not identifiable",
            xlabel="samples D",
            ylabel="held-out loss",
        )
        axis.title.set_fontsize(9)
        axis.set_xticks(np.unique(law.runs.samples), [f"{samples:,.0f}" for samples in np.unique(law.runs.samples)], fontsize=7)
        axis.minorticks_off()
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def downstream(rows: pd.DataFrame, statistics: float | None) -> Figure:
    """Return the probe over compute, beside image statistics."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    sizes = sorted(rows["backbone_parameters"].unique())
    for size, colour in zip(sizes, _shades(len(sizes))):
        of = rows[rows["backbone_parameters"] == size]
        axis.plot(of["flops"] / 1e12, of["probe"], "o", color=colour, markersize=4, label=f"N = {size:,.0f}")
    if statistics is not None:
        axis.axhline(statistics, color="#5b6770", linestyle=":", linewidth=1.4, label="image statistics")
    axis.set(xscale="log", xlabel="TFLOP", ylabel="linear probe, mean over sensors")
    axis.legend(fontsize=7, frameon=False)
    return figure


def isoflop(rows: pd.DataFrame, found: Sequence[Valley], name: str) -> Figure:
    """Return the loss over size, a curve for each budget, with the bottoms of the valleys."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, (budget, of) in enumerate(rows.groupby("budget", sort=False)):
        mean = of.groupby("backbone_parameters")[LOSSES + name].mean()
        axis.plot(mean.index, mean, "o-", color=COLOURS[number % len(COLOURS)], markersize=4, linewidth=1, label=str(budget))
    inside = [one for one in found if one.is_inside]
    axis.plot([one.parameters for one in inside], [one.loss for one in inside], "k*", markersize=9)
    axis.set(xscale="log", xlabel="parameters of the backbone", ylabel="held-out loss, mean over sensors")
    axis.legend(fontsize=7, frameon=False)
    return figure


def rates(rows: pd.DataFrame, rule: RateRule, name: str) -> Figure:
    """Return the loss over rate for each width, and the best rate over width."""
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    widths = sorted(rule.best)
    for width, colour in zip(widths, _shades(len(widths))):
        mean = rows[rows["width"] == width].groupby("learning_rate")[LOSSES + name].mean()
        left.plot(mean.index, mean, "o-", color=colour, markersize=4, linewidth=1, label=f"width {width}")
        right.plot(width, rule.best[width], "o" if rule.is_inside[width] else "^", color=colour)
    line = np.geomspace(widths[0], widths[-1], 20)
    for (exponent, (smallest, _)), style in zip(rule.rules.items(), ("-", "--", ":")):
        given = smallest * (widths[0] / line) ** exponent
        right.plot(line, given, style, color="#5b6770", linewidth=1, label=f"width^-{exponent:g}")
    left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="held-out loss")
    right.set(xscale="log", yscale="log", xlabel="width", ylabel="best rate (triangle: at the edge)")
    for axis in (left, right):
        axis.legend(fontsize=7, frameon=False)
    return figure


def arms(lines: Sequence[dict[str, Any]], statistics: float | None) -> Figure:
    """Return each arm's probe with its spread over seeds, beside the same encoder before training and image statistics."""
    shown = [line for line in lines if line["over_untrained"] is not None][::-1]
    figure = Figure(figsize=(6.4, 0.8 + 0.24 * len(shown)), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(shown))
    axis.errorbar(
        [line["probe"] for line in shown],
        places,
        xerr=[line["probe_spread"] for line in shown],
        fmt="o",
        color=COLOURS[0],
        markersize=4,
        label="trained",
    )
    axis.plot([line["untrained"] for line in shown], places, "|", color=COLOURS[1], markersize=9, label="the same, before training")
    if statistics is not None:
        axis.axvline(statistics, color="#5b6770", linestyle=":", linewidth=1.4, label="image statistics")
    axis.set_yticks(places, [line["arm"] for line in shown], fontsize=7)
    axis.set_xlabel("linear probe, mean over sensors")
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    return figure


def _shades(count: int) -> list[tuple[float, float, float]]:
    """Return light to dark blues, one a size."""
    return [(0.72 - 0.66 * share, 0.82 - 0.6 * share, 0.93 - 0.45 * share) for share in np.linspace(0, 1, max(count, 2))][:count]
