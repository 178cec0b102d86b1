"""What a ladder says: laws of held-out losses, how well they forecast, what a budget buys; or that none can be told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from jobs.scaling.budget import SampleCost, Valley, best_size, valleys
from jobs.scaling.evidence import INTERVAL, Fit, NotIdentifiable, extrapolation, fit_law
from jobs.scaling.joint import fit_joint
from jobs.scaling.law import Runs, projected_fit
from jobs.sweeping.rows import LOSSES
from pipeline.errors import InputError

DRAWS = 200
SHORT_DRAWS = 60
MEAN = "mean"


@dataclass(frozen=True)
class LossLaw:
    """The law of one loss, or why there is none; forecasts of the largest runs by a fit without them."""

    name: str
    runs: Runs
    fit: Fit | None
    reason: str
    forecasts: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        if self.fit is None:
            return {"law": None, "reason": self.reason, "extrapolation": self.forecasts}
        projected = projected_fit(self.runs)
        return {
            "law": asdict(self.fit.law),
            "intervals": self.fit.intervals(),
            "noise": self.fit.noise,
            "by_variable_projection": asdict(projected),
            "extrapolation": self.forecasts,
        }


def losses_in(rows: pd.DataFrame) -> list[str]:
    """Return what the rows have a held-out loss of: sensor sets, and 'mean' of them."""
    names = [name.removeprefix(LOSSES) for name in rows if name.startswith(LOSSES)]
    return [name for name in names if "/" not in name and rows[LOSSES + name].notna().all()]


def runs_of(rows: pd.DataFrame, name: str) -> Runs:
    values = (rows["backbone_parameters"], rows["samples"], rows[LOSSES + name])
    return Runs(*(column.to_numpy(float) for column in values))


def laws_of(rows: pd.DataFrame) -> list[LossLaw]:
    """Return the law of each loss, with forecasts of the runs of the largest size on most samples."""
    largest = (rows["backbone_parameters"] * rows["samples"]).to_numpy(float)
    num_held = int((largest >= largest.max() * 0.999).sum())
    found = []
    for name in losses_in(rows):
        runs = runs_of(rows, name)
        try:
            fit, reason = fit_law(runs, DRAWS), ""
        except NotIdentifiable as error:
            fit, reason = None, str(error)
        try:
            forecasts = extrapolation(runs, num_held, SHORT_DRAWS)
        except NotIdentifiable:
            forecasts = []
        found.append(LossLaw(name, runs, fit, reason, forecasts))
    return found


def joint_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Return exponents that all sensors share, each with its own floor and scales, or why there are none."""
    runs = {name: runs_of(rows, name) for name in losses_in(rows) if name != MEAN}
    if len(runs) < 2:
        return {"reason": f"{len(runs)} losses, expected those of two sensors or more"}
    try:
        found = fit_joint(runs)
    except NotIdentifiable as error:
        return {"reason": str(error)}
    return {
        "size_exponent": found.size_exponent,
        "size_interval": found.size_interval,
        "data_exponent": found.data_exponent,
        "data_interval": found.data_interval,
        "floors": {name: law.floor for name, law in found.laws.items()},
    }


def budgets_of(rows: pd.DataFrame, laws: Sequence[LossLaw], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """Return for each budget (operations) and law what it is best spent on; none where there is no law or one size."""
    try:
        cost = SampleCost.of(rows["backbone_parameters"].to_numpy(float), rows["flops_per_sample"].to_numpy(float))
    except InputError:
        return []
    found = []
    for law in laws:
        for flops in budgets if law.fit is not None else ():
            found.append({"of": law.name, "flops": flops, **asdict(best_size(law.fit, cost, flops))})  # type: ignore[arg-type]
    return found


def valleys_of(rows: pd.DataFrame, name: str) -> list[Valley]:
    """Return IsoFLOP valleys of the mean loss over seeds."""
    groups = rows.groupby(["backbone_parameters", "budget"], as_index=False)
    mean = groups.agg(flops=("flops", "mean"), loss=(LOSSES + name, "mean"))
    return valleys(*(mean[column].to_numpy(float) for column in ("backbone_parameters", "flops", "loss")))


def downstream_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Return how the probe goes with compute and with the held-out loss: rank correlations, with 95 % intervals over runs."""
    if "probe" not in rows or rows["probe"].isna().any() or len(rows) < 4:
        return {}
    compute, probe, loss = (rows[name].to_numpy(float) for name in ("flops", "probe", f"{LOSSES}{MEAN}"))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(DRAWS):
        chosen = rng.integers(len(rows), size=len(rows))
        drawn.append([spearmanr(values[chosen], probe[chosen]).statistic for values in (compute, loss)])
    limits = np.nanpercentile(np.array(drawn), INTERVAL, axis=0).T
    said = {}
    for name, values, (low, high) in zip(("compute", "loss"), (compute, loss), limits):
        correlation = float(spearmanr(values, probe).statistic)
        said[f"probe_with_{name}"] = {"correlation": correlation, "low": float(low), "high": float(high)}
    return said


def words(laws: Sequence[LossLaw], joint: dict[str, Any], downstream: dict[str, Any]) -> list[str]:
    """Return what follows, in sentences."""
    said = []
    for law in laws:
        if law.fit is None:
            said.append(f"{law.name}: not identifiable, {law.reason}.")
            continue
        limits = law.fit.intervals()
        numbers = (
            f"{symbol} {getattr(law.fit.law, field):.3g} ({limits[field][0]:.3g} to {limits[field][1]:.3g})"
            for symbol, field in (("E", "floor"), ("alpha", "size_exponent"), ("beta", "data_exponent"))
        )
        errors = [abs(one["error"]) for one in law.forecasts]
        held = f"the largest runs, held out, are forecast to {max(errors):.1%}" if errors else "without the largest there is no law"
        said.append(f"{law.name}: {', '.join(numbers)}, residuals of {law.fit.noise:.1%}; {held}.")
    if "reason" in joint:
        said.append(f"All sensors together: not identifiable, {joint['reason']}.")
    else:
        size, data = joint["size_interval"], joint["data_interval"]
        said.append(
            f"All sensors together, each with its own floor: alpha {joint['size_exponent']:.3g} ({size[0]:.3g} to {size[1]:.3g}), "
            f"beta {joint['data_exponent']:.3g} ({data[0]:.3g} to {data[1]:.3g})."
        )
    for name, of in downstream.items():
        sure = "" if of["low"] > 0 or of["high"] < 0 else ", so it cannot be told that they go together"
        said.append(
            f"The probe's rank correlation with {name.removeprefix('probe_with_')} is {of['correlation']:+.2f} "
            f"({of['low']:+.2f} to {of['high']:+.2f}){sure}."
        )
    return said
