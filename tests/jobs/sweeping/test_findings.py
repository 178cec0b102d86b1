"""What sweeps conclude, from ledgers with a planted truth: laws, rates, arms; and what cannot be told."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cluster.run import Run
from jobs.evaluation.metrics import Classified
from jobs.scaling.law import Law
from jobs.sweeping import page
from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.findings import Findings, find
from jobs.sweeping.ledger import Ledger
from jobs.sweeping.plan import Plan
from jobs.sweeping.plans.ladder import IsoflopOptions, LadderOptions, RateOptions, isoflop, ladder, rate_transfer
from jobs.sweeping.quiz import Answers
from jobs.sweeping.rows import rows_of, to_parquet
from jobs.sweeping.sizes import Sizes
from jobs.sweeping.verdict import gain
from jobs.sweeping.worker import STATISTICS, UNTRAINED

LAWS = {"optical": Law(0.35, 40.0, 0.5, 300.0, 0.6), "radar": Law(0.8, 30.0, 0.5, 500.0, 0.6)}
QUIZ = "landcover/optical"


def sizes(cell: Cell, rate: float = 1e-3) -> Sizes:
    dial = int(cell.arm.split()[1])
    parameters, flops = 7000 * dial**3, 6.0 * 7000 * dial**3
    samples = cell.budget.samples or round(cell.budget.flops / flops)
    return Sizes("vit", 24 * dial, dial, 2 * parameters, parameters, parameters, flops, 16, samples // 16, 1.0, rate, 4)


def finish(
    ledger: Ledger,
    cell: Cell,
    of: Sizes,
    loss: dict[str, float],
    answers: dict[str, Answers] | None = None,
    exam: float | None = None,
) -> None:
    answers = answers or {}
    facts = {
        "sizes": asdict(of) | {"samples": of.samples, "flops": of.flops},
        "loss": {"": {"mean": float(np.mean(list(loss.values()))), **loss}} | ({} if exam is None else {"hidden": {"mean": exam}}),
        "probes": {name: {"metric": "accuracy", "score": a.score, "low": 0.0, "high": 1.0} for name, a in answers.items()},
        "health": {"effective_rank/optical": 5.0},
        "counted_flops": of.flops,
        "train_loss": 1.0,
        "seconds": 1.0,
        "cpu_seconds": 1.0,
        "training_cpu_seconds": 1.0,
    }
    ledger.finish(cell, facts, answers)


def found(plan: Plan, folder: Path) -> Findings:
    """Return what follows from the ledger in `folder`, having drawn its page."""
    ledger = Ledger(str(folder))
    done = [cell for cell in plan.cells if ledger.is_done(cell.key)]
    rows = rows_of(done, ledger)
    findings = find(plan, done, rows, ledger)
    page.write(Run(str(folder), "sweep"), plan, findings, rows, ["a note <b>"])
    assert to_parquet(rows)[:4] == b"PAR1"
    assert plan.question in (folder / page.MARKDOWN).read_text()
    shown = (folder / page.FILE).read_text()
    assert "a note &lt;b&gt;" in shown
    assert "<script" not in shown
    for name in findings.figures:
        assert (folder / page.FIGURES / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    return findings


def test_a_planted_law_comes_out_of_the_ledger(tmp_path: Path) -> None:
    plan = ladder(LadderOptions(sizes=(1, 2, 3, 4, 6), samples=(1024, 2048, 4096, 8192, 16384)), None)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for cell in plan.cells:
        of = sizes(cell)
        loss = {name: float(law.loss(of.backbone_parameters, of.samples)) for name, law in LAWS.items()}
        finish(Ledger(str(tmp_path)), cell, of, {name: value * float(np.exp(rng.normal(0, 0.003))) for name, value in loss.items()})
    findings = found(plan, tmp_path)
    for name, law in LAWS.items():
        summary = findings.summary["laws"][name]
        low, high = summary["intervals"]["size_exponent"]
        assert low <= 0.5 <= high
        low, high = summary["intervals"]["data_exponent"]
        assert low <= 0.6 <= high
        assert summary["by_variable_projection"]["floor"] == pytest.approx(law.floor, rel=0.1)
        assert len(summary["extrapolation"]) == 2
        assert max(abs(one["error"]) for one in summary["extrapolation"]) < 0.05
    joint = findings.summary["joint"]
    assert joint["size_exponent"] == pytest.approx(0.5, rel=0.05)
    assert joint["data_exponent"] == pytest.approx(0.6, rel=0.05)
    assert joint["size_interval"][0] < joint["size_exponent"] < joint["size_interval"][1]
    assert joint["floors"]["radar"] == pytest.approx(0.8, rel=0.1)
    best = next(one for one in findings.summary["budgets"] if one["of"] == "optical")
    law, flops = LAWS["optical"], best["flops"]
    ratio = law.size_exponent * law.size_scale / (law.data_exponent * law.data_scale)
    true = ratio ** (1 / 1.1) * (flops / 6) ** (0.6 / 1.1)
    assert best["parameters_interval"][0] <= true <= best["parameters_interval"][1]
    assert any(said.startswith("optical: E 0.3") for said in findings.verdict)


def test_a_degenerate_ladder_is_refused_in_words(tmp_path: Path) -> None:
    plan = ladder(LadderOptions(sizes=(1, 2), samples=(1024, 2048, 4096), seeds=2), None)  # type: ignore[arg-type]
    for cell in plan.cells:
        finish(Ledger(str(tmp_path)), cell, sizes(cell), {"optical": 1.0, "radar": 2.0})
    findings = found(plan, tmp_path)
    assert findings.summary["laws"]["optical"]["law"] is None
    assert "optical: not identifiable, no law from these runs: they have 2 values of parameters" in " ".join(findings.verdict)
    assert "All sensors together: not identifiable" in findings.verdict[-1]
    assert findings.summary["budgets"] == []


def test_isoflop_valleys_lie_where_they_were_planted(tmp_path: Path) -> None:
    plan = isoflop(IsoflopOptions(sizes=(1, 2, 3, 4, 6), teraflops=(0.001, 0.01), seeds=1), None)  # type: ignore[arg-type]
    for cell in plan.cells:
        of = sizes(cell)
        bottom = 7000 * 2.5**3
        finish(Ledger(str(tmp_path)), cell, of, {"optical": 1 + 0.1 * np.log(of.backbone_parameters / bottom) ** 2})
    findings = found(plan, tmp_path)
    assert [one["parameters"] for one in findings.summary["valleys"]] == [pytest.approx(7000 * 2.5**3, rel=0.05)] * 2
    assert all(one["is_inside"] for one in findings.summary["valleys"])


def test_the_power_of_width_that_rates_were_planted_with_is_found(tmp_path: Path) -> None:
    rates = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
    plan = rate_transfer(RateOptions(sizes=(1, 2, 4), rates=rates, seeds=2), None)  # type: ignore[arg-type]
    for cell in plan.cells:
        rate = cell.recipe_of().train.optimiser.learning_rate
        of = sizes(cell, rate)
        best = 0.003 * (48 / of.width)
        finish(Ledger(str(tmp_path)), cell, of, {"optical": 1 + 0.05 * np.log(rate / best) ** 2 + 1e-4 * cell.seed})
    findings = found(plan, tmp_path)
    assert findings.summary["rate_exponent"] == pytest.approx(1.0, abs=0.02)
    assert findings.summary["best_rate"]["48"] == pytest.approx(0.003, rel=0.02)
    assert "p = 1 costs least" in " ".join(findings.verdict)


def answers(right: float, seed: int) -> Answers:
    """Return answers of which a share is right: the first ones, so that arms are right about the same samples."""
    labels = np.random.default_rng(seed).integers(0, 3, 200).astype(float)
    wrong = np.arange(200) >= round(200 * right)
    place = np.array([f"place{i}" for i in np.random.default_rng(0).integers(0, 20, 200)])
    return Answers(Classified(place, labels, np.where(wrong, (labels + 1) % 3, labels), ("a", "b", "c")))


def test_seeds_are_drawn_once_for_all_quizzes() -> None:
    """One encoder answers all of them: more quizzes do not make its seeds more."""
    lucky = [answers(right, 0) for right in (0.9, 0.7, 0.5)]
    other = [answers(0.7, 0)] * 3
    one, many = (gain({f"q{i}": lucky for i in range(n)}, {f"q{i}": other for i in range(n)}) for n in (1, 8))
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert one.low < -0.1 < 0.1 < one.high


def test_places_are_drawn_rather_than_samples() -> None:
    """All samples of a place are answered alike, so twenty places say no more than twenty samples."""
    labels, number = np.zeros(200), np.arange(200)
    outcomes = [
        Classified(np.array([f"place{i % places:03d}" for i in number]), labels, (number % 20 < 4).astype(float), ("a", "b"))
        for places in (20, 200)
    ]
    few, all_of_them = (gain({"q": [Answers(of)]}, {"q": [Answers(replace(of, predicted=labels))]}) for of in outcomes)
    assert few.high - few.low > 2 * (all_of_them.high - all_of_them.low)


def test_arms_are_told_apart_only_where_they_differ(tmp_path: Path) -> None:
    cells = tuple(Cell(arm, arm, (), seed, Budget(samples=64)) for arm in ("good", "same", "poor") for seed in range(3))
    plan = Plan("planted", "Which is better?", cells, "arms", "same", (("good", "poor"),), ("one archive",))
    ledger, right = Ledger(str(tmp_path)), {"good": 0.9, "same": 0.7, "poor": 0.5}
    of = Sizes("vit", 48, 2, 10, 10, 10, 1e6, 16, 4, 1.0, 1e-3, 1)
    hidden = {"good": (0.50, 0.52, 0.51), "same": (0.60, 0.62, 0.64), "poor": (0.58, 0.70, 0.66)}
    for cell in cells:
        own = {QUIZ: answers(right[cell.arm], 0), f"{QUIZ}/{UNTRAINED}": answers(0.7, 0)}
        finish(ledger, cell, of, {"optical": 1.0}, own, hidden[cell.arm][cell.seed])
    statistics = Cell("", STATISTICS, (), 0, Budget(samples=1))
    finish(ledger, statistics, of, {"optical": 1.0}, {QUIZ: answers(0.8, 0)})
    (tmp_path / "cells" / statistics.key).rename(tmp_path / "cells" / STATISTICS)
    findings = found(plan, tmp_path)
    said = " ".join(findings.verdict)
    assert [line["arm"] for line in findings.summary["arms"]] == ["good", "same", "poor"]
    assert "Highest mean probe: good with 0.900 ± 0.000 over 3 seeds." in findings.verdict
    assert "than the same encoder before training, better: 1 (good); not told apart: 1 (same); worse: 1 (poor)" in said
    assert "than these image statistics, better: 1 (good); worse: 2 (same, poor)" in said
    assert "good against same: better (+0.200, +0.1" in said
    # Leads of 0.10, 0.10, 0.13: 0.110 with a deviation of 0.0173, and 4.303 is Student's quantile of two degrees of freedom.
    assert "Held-out loss hidden: good 0.51; same 0.62; poor 0.6467. Against same: good better (+0.110, +0.067 to +0.153); " in said
    assert "poor not told apart (-0.027, " in said
    assert "good against poor: better (+0.400, +0.3" in said
    assert "Held-out loss hidden, good against poor: better (+0.137, +0.0" in said
