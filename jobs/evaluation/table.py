"""What rows say together: means over seeds for people, and in words how the first model stands against the baselines."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jobs.evaluation.cell import Row, read_outcome
from jobs.evaluation.contenders import RANDOM, SCRATCH, STATISTICS
from jobs.evaluation.interval import gain
from jobs.evaluation.metrics import Outcome

GROUP = ["task", "archive", "sensors", "model", "protocol", "fraction", "perturbation", "strength"]
NAMES = {name: name if name != "protocol" else "method" for name in GROUP}
"""What a line of the table calls what a row calls so."""
OWN = "pretrained"


def table_of(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one line for what seeds have in common: mean, spread (standard deviation over seeds), and the mean of their bounds."""
    lines = []
    done = rows[rows["error"] == ""]
    for (task, archive, sensors, model, protocol, fraction, perturbation, strength), group in done.groupby(GROUP, sort=False):
        scores = group["score"].to_numpy(float)
        first = group.iloc[0]
        lines.append(
            {
                "task": task,
                "archive": archive,
                "metric": first["metric"],
                "sensors": sensors,
                "model": model,
                "method": protocol,
                "fraction": float(fraction),
                "perturbation": perturbation,
                "strength": float(strength),
                "mean": float(scores.mean()),
                "spread": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
                "low": float(group["low"].mean()),
                "high": float(group["high"].mean()),
                "seeds": len(scores),
                "num_train": int(first["num_train"]),
                "num_test": int(first["num_test"]),
                "parameters": None if pd.isna(first["parameters"]) else int(first["parameters"]),
                "scores": _means(group["scores"].to_list()),
            }
        )
    return sorted(lines, key=lambda n: (n["task"], n["archive"], n["sensors"], -n["fraction"], n["method"], -n["mean"]))


def _means(found: list[list[dict[str, Any]]]) -> dict[str, float]:
    values = pd.DataFrame([{score["metric"]: score["value"] for score in scores} for scores in found])
    return {str(name): float(value) for name, value in values.mean().items()}


Gain = Callable[[dict[str, Any], dict[str, Any]], tuple[float, float, float]]
"""From two lines of a table: by how much the first is better, and the bounds of that."""


def gains_of(run_url: str, rows: Mapping[str, Row]) -> Gain:
    """Return what compares two lines sample by sample, from what their cells left."""

    def outcomes(line: dict[str, Any]) -> dict[int, Outcome]:
        found = [row for row in rows.values() if not row.error and all(line[k] == getattr(row, n) for n, k in NAMES.items())]
        return {row.seed: read_outcome(run_url, row) for row in found}

    def gains(own: dict[str, Any], other: dict[str, Any]) -> tuple[float, float, float]:
        mine, theirs = outcomes(own), outcomes(other)
        seeds = sorted(mine.keys() & theirs.keys())
        return gain([mine[seed] for seed in seeds], [theirs[seed] for seed in seeds], own["metric"])

    return gains


def notes_of(table: list[dict[str, Any]], gains: Gain) -> list[str]:
    """Say what the table shows of the first model against the baselines, good or bad: the best protocol of each."""
    notes = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in table:
        if not line["perturbation"]:
            groups.setdefault((line["task"], line["archive"], line["sensors"], line["fraction"]), []).append(line)
    several = len({key[0] for key in groups}) > 1
    for (task, _, sensors, fraction), lines in groups.items():
        where = (f"{task}, " if several else "") + str(sensors) + (f", {fraction:.0%} of the labels" if fraction < 1 else "")
        notes += [f"{where}: {said}" for said in _compared(lines, gains)]
    return notes


def _compared(lines: list[dict[str, Any]], gains: Gain) -> list[str]:
    best: dict[str, dict[str, Any]] = {}
    for line in sorted((n for n in lines if not np.isnan(n["mean"])), key=lambda n: n["mean"]):
        best[line["model"]] = line
    if OWN not in best:
        return []
    own, said = best[OWN], []
    for other in (RANDOM, STATISTICS, SCRATCH):
        if other in best:
            more, low, high = gains(own, best[other])
            word = "beats" if low > 0 else "is behind" if high < 0 else "is not told apart from"
            theirs = best[other]["method"]
            methods = theirs if own["method"] == theirs else f"{own['method']} against {theirs}"
            said.append(f"{OWN} {word} {other}: {more:+.3f} {own['metric']} ({methods}; 95 %: {low:+.3f} … {high:+.3f})")
    if "student" in best and own["mean"] > 0:
        said.append(f"student keeps {best['student']['mean'] / own['mean']:.1%} of the teacher's {own['metric']}")
    return said
