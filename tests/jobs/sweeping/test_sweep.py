"""`terraloom sweep` itself: cells run side by side, a failed one stops none, nothing finished is done again."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs import sweep
from jobs.cli import main
from jobs.sweeping import worker
from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.change import change_quizzes
from jobs.sweeping.ledger import Ledger
from jobs.sweeping.sizes import sizes_of
from pipeline.archive import open_archive
from pipeline.errors import InputError

PLAN = """
question: which is better?
arms:
  mae: {recipe: mae_tiny}
  broken: {recipe: mae_tiny, settings: {train.optimiser.learning_rate: 1.0e+30}}
  simclr: {recipe: simclr_tiny}
teraflops: [0.022]
reference: mae
"""
QUICK = ["--probe-samples", "40", "--held-out-samples", "32", "--probe-sensors", "sentinel2_l2a", "sentinel1_grd"]


@pytest.fixture(autouse=True)
def _standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command leaves standard output turned away, as its process is to end."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)


def terraloom(*arguments: str) -> tuple[int, str, str]:
    """Return exit status, output and errors of a command run in this process."""
    output, errors, shown = io.StringIO(), io.StringIO(), sys.stdout
    with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main([*arguments])
    sys.stdout = shown
    return int(str(ended.value.code or 0)), output.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plans") / "two.yaml"
    path.write_text(PLAN)
    return str(path)


KILLED_AFTER_A_CELL = """
import os, signal, sys
from jobs import cli, sweep

progress = sweep.progress

def killed(items, total, label):
    for item in progress(items, total, label):
        yield item
        if label == "cells":
            os.kill(os.getpid(), signal.SIGKILL)

sweep.progress = killed
cli.main(sys.argv[1:])
"""
"""A `terraloom` that the kernel kills after its first cell."""


def test_a_killed_sweep_goes_on_with_what_is_missing(archive: str, cluster: str, plan_file: str, tmp_path: Path) -> None:
    """After its first cell; a cell whose loss is not finite is recorded, and the others go on."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED_AFTER_A_CELL, "sweep", plan_file, archive, str(run), *QUICK, "--at-once", "1"]
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (run / "summary.json").exists()
    (done,) = [path for path in run.glob("cells/*/summary.json") if (path.parent / "train").exists()]
    before = {path: path.read_bytes() for path in (done, done.parent / "train" / "metrics.jsonl")}

    status, output, errors = terraloom("sweep", plan_file, archive, str(run), *QUICK, "--at-once", "1", "--json")
    assert status == 0, errors
    summary = json.loads(output.splitlines()[-1])
    assert (summary["cells"], summary["failed"]) == (3, 1)
    assert {path: path.read_bytes() for path in before} == before
    (failed,) = run.glob("cells/*/failed.json")
    assert "finite" in json.loads(failed.read_text())["reason"]
    assert [note for note in summary["notes"] if note.startswith("failed: broken, 0.022 TFLOP, seed 0: ")]
    assert [line["arm"] for line in summary["arms"]].count("broken") == 0
    assert {line["arm"] for line in summary["arms"]} == {"mae", "simclr"}
    for line in summary["arms"]:  # equal budgets, as the runs themselves counted them
        assert line["counted_flops"] == pytest.approx(2.2e10, rel=0.3)
        assert 0 <= line["probe"] <= 1
        assert any(name.startswith("health/effective_rank/") for name in line)
    sizes = json.loads((run / "sizes.json").read_text())
    for path in run.glob("cells/*/summary.json"):
        if path.parent.name in sizes:
            told = json.loads(path.read_text())
            assert told["counted_flops"] == pytest.approx(told["sizes"]["flops"], rel=0.2)
            assert not (path.parent / "train" / "checkpoints").exists()
    assert summary["statistics"] is not None
    assert (run / "report.html").is_file()
    assert (run / "cells.parquet").is_file()


def test_a_cell_that_had_trained_is_scored_without_training_again(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("mae", "mae_tiny", (), 0, Budget(samples=96), exams=(("asked", (("mask_ratio", 0.5),)), ("as it is", ())))
    asked, ledger = worker.Asked(("landcover",), 20, 32, sensors=("sentinel2_l2a",)), Ledger(str(tmp_path))
    of = sizes_of(cell, archive)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "held_out", killed)
    with pytest.raises(KeyboardInterrupt):
        worker.run_cell(cell, of, archive, ledger.url, "", asked)
    assert not ledger.is_done(cell.key)
    metrics = Path(ledger.path(cell.key, "train", "metrics.jsonl"))
    before = metrics.read_bytes()
    monkeypatch.undo()
    ledger.fail(cell, "it was killed")
    worker.run_cell(cell, of, archive, ledger.url, "", asked)
    assert metrics.read_bytes() == before
    assert ledger.failure(cell.key) == ""
    found = ledger.summary(cell.key)
    assert set(found["loss"]) == {"asked", "as it is"}
    assert found["loss"]["asked"]["mean"] != found["loss"]["as it is"]["mean"]
    answers = ledger.answers(cell.key)
    for name, of_probe in found["probes"].items():
        assert answers[name].score == pytest.approx(of_probe["score"])
    trained = [name for name in answers if not name.endswith("untrained")]
    assert set(answers) == {*trained, *(f"{name}/untrained" for name in trained)}


def test_hours_are_steps_at_the_speed_of_a_cell(
    archive: str, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speed is measured once, for both seeds, with the CPUs that a cell has."""
    plan, run, held = tmp_path / "hours.yaml", tmp_path / "run", tmp_path / "held"
    plan.write_text("arms: {mae: {recipe: mae_tiny, settings: {train.batch_size: 2}}}\nseeds: 2\nhours: [0.002]\n")

    def timed(*about: Any) -> float:
        with held.open("a") as lines:
            lines.write(f"{ray.get_runtime_context().get_assigned_resources()['CPU']}\n")
        return worker.seconds_per_step(*about)

    monkeypatch.setattr(sweep, "seconds_per_step", timed)
    small = ["--probe-samples", "0", "--held-out-samples", "16", "--cell-cpus", "0.5"]
    status, output, errors = terraloom("sweep", str(plan), archive, str(run), *small, "--json")
    assert status == 0, errors
    assert held.read_text() == "0.5\n"
    assert json.loads(output.splitlines()[-1])["failed"] == 0
    sizes = json.loads((run / "sizes.json").read_text())
    (steps,) = {of["steps"] for of in sizes.values()}
    assert steps >= 2
    assert {path.parent.parent.name for path in run.glob("cells/*/train/summary.json")} == set(sizes)  # and no speed run is left
    for path in run.glob("cells/*/summary.json"):
        if path.parent.name in sizes:
            metrics = path.parent / "train" / "metrics.jsonl"
            assert len(metrics.read_text().splitlines()) == steps


def test_a_dry_run_explains_and_starts_nothing(archive: str, plan_file: str, tmp_path: Path) -> None:
    status, output, _ = terraloom("sweep", plan_file, archive, str(tmp_path / "run"), "--dry-run", "True", "--json")
    assert status == 0
    told = json.loads(output.splitlines()[-1])
    assert [run["arm"] for run in told["runs"]] == ["mae", "broken", "simclr"]
    assert sum(run["flops"] for run in told["runs"]) == pytest.approx(1e15 * told["petaflop"])
    assert not (tmp_path / "run").exists()


def test_without_arguments_the_plans_are_listed() -> None:
    status, output, _ = terraloom("sweep")
    assert status == 0
    for name in ("ladder", "isoflop", "rate_transfer", "genealogy", "temporal", "hypernetwork", "FILE.yaml"):
        assert f"\n  {name}" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lader", "ARCHIVE", "RUN"], "plan 'lader' is unknown and no .yaml file"),
        (["missing.yaml", "ARCHIVE", "RUN"], "plan file 'missing.yaml' is missing"),
        (
            ["ladder", "ARCHIVE", "RUN", "--sizs", "1"],
            "argument '--sizs' is unknown to 'terraloom sweep ladder'; did you mean '--sizes'?",
        ),
        (["ladder", "ARCHIVE", "RUN", "--seeds", "0"], "seeds is 0, expected at least 1"),
        (["ladder", "ARCHIVE", "RUN", "--recipe", "maetiny"], "pretrain recipe 'maetiny' is unknown"),
        (
            ["moe", "ARCHIVE", "RUN", "--cell-cpus", "0"],
            "a sweep has cell_cpus 0, cell_gpus 0, at_once 0, expected > 0, >= 0, >= 0",
        ),
        (
            ["moe", "ARCHIVE", "RUN", "--cell-gpus", "1", "--workers", "2"],
            "cell_gpus is 1 with workers '2', expected 0, as GPUs are then held by each run's workers; use --workers 0",
        ),
        *(
            ([plan, "ARCHIVE", "RUN", "--workers", "2"], f"workers is '2', expected 0 for plan '{plan}'")
            for plan in ("ladder", "isoflop", "rate_transfer")
        ),
        (["moe", "ARCHIVE", "RUN", "--probe-sensors", "lidar"], "probe_sensors names lidar, "),
        (["moe", "ARCHIVE", "RUN", "--labels", "lakes"], "label 'lakes' is not in "),
        (["moe", "ARCHIVE", "RUN", "--held-out-samples", "0"], "probe_samples 400, held_out_samples 0 expected >= 0, >= 1"),
        (["hypernetwork", "ARCHIVE", "RUN", "--unseen", "lidar"], "unseen is 'lidar', which "),
        (["hypernetwork", "ARCHIVE", "RUN", "--unseen", "sentinel2_l2a"], "which all others are paired with; leave out another"),
        (["temporal", "ARCHIVE", "RUN", "--changes", "nowhere.geojson"], "nowhere.geojson' are missing, expected GeoJSON"),
        (["moe", "ARCHIVE", "RUN", "--teraflops", "0.00001", "--dry-run", "True"], "a step takes 32; give it more"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str, archive: str, tmp_path: Path) -> None:
    named = {"ARCHIVE": archive, "RUN": str(tmp_path / "run")}
    status, _, errors = terraloom("sweep", *(named.get(argument, argument) for argument in arguments))
    assert status == 2
    (line,) = errors.splitlines()
    assert said in line
    assert not list((tmp_path / "run").glob("cells/*"))


def test_change_is_asked_of_sites_whose_ground_changed(
    archive: str, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polygons over chosen sites, in the archive's own coordinates: these sites have changed, and no others."""
    import geopandas as gpd

    catalog = open_archive(archive).catalog()
    sites = catalog.drop_duplicates("site")
    chosen = sites.groupby("split").head(3)
    path = tmp_path / "changes.geojson"
    middle = catalog["time"].min() + (catalog["time"].max() - catalog["time"].min()) / 2
    changed = gpd.GeoDataFrame({"time": [middle.isoformat()] * len(chosen)}, geometry=chosen.geometry.values, crs=catalog.crs)
    changed.geometry = changed.to_crs(changed.estimate_utm_crs()).buffer(-100).to_crs(catalog.crs)
    path.write_text(changed.to_json())
    quizzes = change_quizzes(open_archive(archive), str(path), 100)
    assert quizzes
    for quiz in quizzes:
        assert quiz.samples.tiles.rows[quiz.samples.sensors[0]].shape[1] == 2
        assert set(quiz.samples.tiles.site[quiz.labels > 0]) <= set(chosen["site"])
        assert quiz.labels.sum() >= 6
        assert quiz.kind == "binary"
    plan, run = tmp_path / "plan.yaml", tmp_path / "run"
    plan.write_text("arms: {mae: {recipe: mae_tiny, settings: {train.batch_size: 2}}}\nseeds: 1\nsamples: [16]\n")
    monkeypatch.chdir(tmp_path)  # where no cell runs
    small = ["--probe-samples", "20", "--held-out-samples", "16"]
    status, _, errors = terraloom("sweep", str(plan), archive, str(run), *small, "--changes", path.name)
    assert status == 0, errors
    (cell,) = [path for path in run.glob("cells/*/summary.json") if (path.parent / "train").exists()]
    assert {quiz.name for quiz in quizzes} <= json.loads(cell.read_text())["probes"].keys()
    one = tmp_path / "one.geojson"
    one.write_text(changed.head(1).to_json())
    with pytest.raises(InputError, match=r"sites that changed by .* use more ground or more changes"):
        change_quizzes(open_archive(archive), str(one), 100)
