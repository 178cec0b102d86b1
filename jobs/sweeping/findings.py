"""What follows from a sweep's finished cells, as its plan asks: numbers, sentences, tables, figures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from jobs.sweeping import arms, drawing, laws, rates
from jobs.sweeping.cell import Cell
from jobs.sweeping.ledger import Ledger
from jobs.sweeping.plan import Plan
from jobs.sweeping.rows import LOSSES
from jobs.sweeping.verdict import Gain

RATE_EXPONENTS = (0.0, 0.5, 1.0)
MEAN = "mean"


@dataclass(frozen=True)
class Findings:
    """summary goes into summary.json; verdict is in sentences; tables are (title, lines of named values)."""

    summary: dict[str, Any]
    verdict: list[str]
    tables: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)


def find(plan: Plan, done: Sequence[Cell], rows: pd.DataFrame, ledger: Ledger) -> Findings:
    """Return what the finished cells of `plan` say."""
    return {"law": _law, "isoflop": _isoflop, "rates": _rates, "arms": _arms}[plan.finding](plan, done, rows, ledger)


def _law(plan: Plan, done: Sequence[Cell], rows: pd.DataFrame, ledger: Ledger) -> Findings:
    found, joint, downstream = laws.laws_of(rows), laws.joint_of(rows), laws.downstream_of(rows)
    largest = float(rows["flops"].max())
    budgets = laws.budgets_of(rows, found, plan.budgets or (largest, 10 * largest))
    summary = {"laws": {law.name: law.summary() for law in found}, "joint": joint, "downstream": downstream, "budgets": budgets}
    forecasts = [{"loss of": law.name, **one} for law in found for one in law.forecasts]
    tables = [("Sizes", _sizes(rows)), ("Forecasts of the largest runs by a law fitted without them", forecasts)]
    tables.append(("What a budget is best spent on", [_budget(one) for one in budgets]))
    figures = {"law": drawing.ladder(rows, found)}
    if downstream:
        figures["downstream"] = drawing.downstream(rows, arms.statistics_score(ledger))
    return Findings(summary, laws.words(found, joint, downstream), tables, figures)


def _isoflop(plan: Plan, done: Sequence[Cell], rows: pd.DataFrame, ledger: Ledger) -> Findings:
    found = laws.valleys_of(rows, MEAN)
    said = [
        f"At {one.flops / 1e12:.3g} TFLOP the best size is {one.parameters:.3g} parameters (loss {one.loss:.4g})."
        if one.is_inside
        else f"At {one.flops / 1e12:.3g} TFLOP the best size lies outside of those tried, near {one.parameters:.3g} parameters."
        for one in found
    ] or ["No budget was given to three sizes, so there is no valley."]
    summary = {"valleys": [asdict(one) for one in found], "downstream": laws.downstream_of(rows)}
    return Findings(summary, said, [("Sizes", _sizes(rows))], {"isoflop": drawing.isoflop(rows, found, MEAN)})


def _rates(plan: Plan, done: Sequence[Cell], rows: pd.DataFrame, ledger: Ledger) -> Findings:
    rule = rates.rate_rule(rows, MEAN, RATE_EXPONENTS)
    return Findings(rates.summary(rule), rates.words(rule), [("Sizes", _sizes(rows))], {"rates": drawing.rates(rows, rule, MEAN)})


def _arms(plan: Plan, done: Sequence[Cell], rows: pd.DataFrame, ledger: Ledger) -> Findings:
    statistics = arms.statistics_score(ledger)
    lines = arms.compare(rows, done, ledger, plan.reference)
    summary = {"arms": [_plain(line) for line in lines], "statistics": statistics, "reference": plan.reference}
    shown = [_shown(line) for line in lines]
    figures = {"arms": drawing.arms(lines, statistics)} if any(line["over_untrained"] for line in lines) else {}
    said = arms.words(lines, plan.reference, statistics) + arms.pairs(rows, done, ledger, plan.versus)
    return Findings(summary, said, [("Arms, best first", shown)], figures)


def _sizes(rows: pd.DataFrame) -> list[dict[str, Any]]:
    sizes = ["width", "depth", "backbone_parameters", "parameters", "learning_rate", "steps", "samples", "passes", "flops"]
    columns = ["arm", "budget", *sizes]
    mean = [name for name in (f"{LOSSES}{MEAN}", "probe") if name in rows]
    lines = rows.groupby(columns, sort=False, as_index=False)[[*mean, "cpu_seconds"]].mean()
    return lines.to_dict("records")


def _budget(one: dict[str, Any]) -> dict[str, Any]:
    low, high = one["parameters_interval"]
    return {
        "loss of": one["of"],
        "TFLOP": one["flops"] / 1e12,
        "parameters": one["parameters"],
        "95 %": f"{low:.3g} to {high:.3g}",
        "samples": one["samples"],
        "loss": one["loss"],
    }


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return asdict(value) if isinstance(value, Gain) else value

    return plain(line)


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a line that people read first."""
    shown: dict[str, Any] = {"arm": line["arm"], "probe": f"{line['probe']:.3f} ± {line['probe_spread']:.3f}"}
    for name, value in line.items():
        if name.startswith("probe/") and not name.endswith("/untrained"):
            shown[name.removeprefix("probe/")] = f"{value:.3f}"
    for name in ("over_reference", "over_untrained", "over_statistics"):
        if line[name] is not None:
            shown[name.replace("_", " ")] = line[name].words()
    shown |= {"backbone": line["backbone"], "parameters": line["parameters"], "used a token": line["active_parameters"]}
    shown |= {"steps": line["steps"], "samples": line["samples"]}
    shown["TFLOP counted"] = f"{line['counted_flops'] / 1e12:.4f}"
    for measure in ("effective_rank", "feature_std"):
        values = [value for name, value in line.items() if name.startswith(f"health/{measure}/")]
        shown[measure.replace("_", " ")] = f"{sum(values) / len(values):.2f}" if values else ""
    return shown | {"CPU-s": round(line["cpu_seconds"], 1)}
