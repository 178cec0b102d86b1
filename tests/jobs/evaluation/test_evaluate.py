"""The command evaluate on an archive whose labels can be told from its pixels."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jobs.cli import main
from jobs.evaluation import cell as cells
from jobs.evaluation.contenders import RANDOM, SCRATCH, STATISTICS
from jobs.evaluation.task import METRICS
from pipeline.archive import Archive
from tests.jobs.evaluation.conftest import LABELS, write_model

QUICK = ("--decoder-steps", "30", "--finetune-steps", "8", "--batch-size", "8", "--learning-rate", "0.01")
EVERY = ("--protocols", "linear", "sgd", "decoder", "pixel_decoder", "finetune", "--seeds", "1", "--ignore", "clutter")


def evaluate(*arguments: str) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main(["evaluate", *arguments, "--json"])
    return int(str(ended.value.code)), output.getvalue(), errors.getvalue()


def summary_of(*arguments: str) -> dict[str, Any]:
    status, output, errors = evaluate(*arguments)
    assert status == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def everything(model: str, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("everything") / "run"
    summary_of("all", model, str(run), *EVERY, *QUICK)
    return run


@pytest.fixture(scope="module")
def table(everything: Path) -> pd.DataFrame:
    return cells.frame(cells.read(str(everything)))


def test_every_kind_is_answered_with_all_its_baselines(table: pd.DataFrame) -> None:
    assert set(table["task"]) == set(LABELS)
    assert (table["error"] == "").all(), table["error"].tolist()
    expected = {
        "class": {"linear", "sgd", "finetune"},
        "binary": {"linear", "sgd", "finetune"},
        "multilabel": {"linear", "sgd", "finetune"},
        "fraction": {"linear", "sgd", "finetune"},
        "segmentation": {"decoder", "pixel_decoder", "finetune", "forest"},
        "change": {"decoder", "pixel_decoder", "finetune", "forest", "change_vector"},
    }
    for kind, rows in table.groupby("kind"):
        assert set(rows["protocol"]) == expected[str(kind)]
        assert set(rows["model"]) == {"pretrained", RANDOM, STATISTICS, SCRATCH}
        assert set(rows["metric"]) == {METRICS[str(kind)]}


def test_what_can_be_told_from_pixels_is_told(table: pd.DataFrame) -> None:
    best = table[table["model"] == STATISTICS].groupby("task")["score"].max()
    assert best["level"] > 0.9
    assert best["bright"] > 0.9
    assert best["bands"] > 0.9
    assert best["share"] > 0.7
    assert best["water"] > 0.7
    assert best["flood"] > 0.9
    assert table.query("task == 'flood' and protocol == 'decoder'")["score"].max() > 0.5
    assert table.query("task == 'flood' and protocol == 'pixel_decoder'")["score"].max() > 0.7
    stopped = table[table["protocol"].isin(["decoder", "pixel_decoder", "finetune"])]["settings"].map(json.loads)
    assert all(1 <= found["stopped_at"] <= found["decoder_steps"] for found in stopped)


def test_rows_say_where_their_numbers_come_from(table: pd.DataFrame, told: Archive, everything: Path) -> None:
    assert set(table["data_digest"]) == {told.digest()}
    assert table.groupby("task")["split_digest"].nunique().eq(1).all()
    assert set(table.query("model == 'pretrained'")["normalisation_digest"]) == {
        next(iter(table.query("model == 'pretrained'")["normalisation_digest"]))
    }
    assert (table["low"] <= table["score"] + 1e-9).all()
    assert (table["high"] >= table["score"] - 1e-9).all()
    assert table["seconds"].gt(0).all()
    assert {"torch", "scikit-learn", "terraloom"} <= set(json.loads(table["versions"].iloc[0]))
    by_task = table.groupby("task")[["num_train", "num_val", "num_test"]].first()
    assert by_task.loc["level"].tolist() == [72, 36, 36], "each date of each site"
    assert by_task.loc["flood"].tolist() == [36, 18, 18], "each site"
    water = table.query("task == 'water'")["scores"].iloc[0]
    assert {score["metric"] for score in water} >= {"mIoU", "mF1", "IoU land", "IoU water", "overall accuracy"}
    assert not any("clutter" in score["metric"] for score in water)


def test_maps_leave_pictures_beside_their_rows(table: pd.DataFrame, everything: Path) -> None:
    key = table.query("task == 'flood' and protocol == 'forest'")["key"].iloc[0]
    arrays = cells.read_arrays(str(everything), key)
    count = len(arrays["pictures/true"])
    assert arrays["pictures/image"].shape == (count, 16, 16, 3)
    assert set(np.unique(arrays["pictures/true"])) == {0, 1, 255}
    agree = arrays["pictures/predicted"] == arrays["pictures/true"]
    assert agree[arrays["pictures/true"] != 255].mean() > 0.9
    assert arrays["outcome/counts"].shape == (18, 2, 2)
    assert arrays["outcome/counts"].sum() == 18 * 16 * 15


def test_a_finished_run_is_only_reported(everything: Path, model: str) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (everything / "cells").iterdir()}
    summary = summary_of("all", model, str(everything), *EVERY, *QUICK)
    assert summary["failed"] == 0
    assert summary["cells"] * 2 == len(before)
    assert before == {path.name: path.stat().st_mtime_ns for path in (everything / "cells").iterdir()}


def test_shares_of_the_labels_are_listed_in_the_run(model: str, cluster: str, tmp_path: Path) -> None:
    shares = ("--label-fractions", "0.1", "0.5", "1", "--seeds", "2", "--protocols", "knn")
    table = pd.DataFrame(summary_of("level", model, str(tmp_path / "run"), *shares, *QUICK)["table"])
    assert sorted(set(table["num_train"])) == [6, 36, 72]
    assert table.query("fraction == 0.1 and model != @SCRATCH")["seeds"].eq(2).all()
    rows = cells.frame(cells.read(str(tmp_path / "run")))
    assert rows.groupby("seed")["labels_file"].nunique().tolist() == [1, 1]
    lists = {seed: pd.read_parquet(tmp_path / "run" / files.iloc[0]) for seed, files in rows.groupby("seed")["labels_file"]}
    for listed in lists.values():
        assert not listed.duplicated(["shard", "row"]).any()
        assert [int((listed["fraction"] <= share).sum()) for share in (0.1, 0.5, 1)] == [6, 36, 72]
        assert listed["site"].str.startswith("told/train").all()
    drawn = [set(listed.query("fraction <= 0.5")[["shard", "row"]].itertuples(index=False)) for listed in lists.values()]
    assert drawn[0] != drawn[1]


def test_labels_of_several_archives_in_one_run(told: Archive, model: str, cluster: str, tmp_path: Path) -> None:
    other = shutil.copytree(told.url, tmp_path / "other")
    data = ("--data", told.url, "--data", str(other))
    options = ("--protocols", "knn", "--seeds", "1", *QUICK)
    summary = summary_of("level,share", model, str(tmp_path / "run"), *data, *options)
    table = pd.DataFrame(summary["table"])
    assert table.groupby(["task", "archive"]).size().eq(4).all()
    assert set(table["archive"]) == {told.url, str(other)}
    assert set(table.groupby("task")["metric"].first()) == {"accuracy", "R2"}
    halves = [table[table["archive"] == url].drop(columns="archive").reset_index(drop=True) for url in (told.url, str(other))]
    assert halves[0]["mean"].equals(halves[1]["mean"]), "the same data give the same scores"


def test_killed_run_goes_on_without_repeating_a_cell(model: str, cluster: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--protocols", "linear", "knn", "sgd", "--seeds", "3", "--decoder-steps", "300", "--finetune-steps", "30")
    command = [sys.executable, "-m", "jobs.cli", "evaluate", "level", model, str(run), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster}, **quiet)
    while not list((run / "cells").glob("*.parquet")):
        assert process.poll() is None, "it ended before any cell was done"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "summary.json").exists()
    before = {path.name: path.read_bytes() for path in (run / "cells").glob("*.parquet")}
    summary = summary_of("level", model, str(run), *options)
    after = {path.name: path.read_bytes() for path in (run / "cells").glob("*.parquet")}
    assert summary["cells"] == len(after) > len(before)
    assert all(after[name] == content for name, content in before.items())


def test_cells_that_fail_are_recorded_and_answered_later(model: str, cluster: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("level", model, str(run), "--protocols", "knn", "--seeds", "1", *QUICK)
    summary_of(*options)
    for path in (run / "summary.json", *(run / "cells").iterdir()):
        path.unlink()
    damaged = next(folder for folder in sorted((run / "features").iterdir()))
    for path in damaged.rglob("pooled.npy"):
        path.write_bytes(path.read_bytes()[:100])
    summary = summary_of(*options)
    rows = cells.frame(cells.read(str(run)))
    assert summary["failed"] == 1
    assert (rows["error"] != "").sum() == 1
    assert rows["score"].notna().sum() == len(rows) - 1
    assert any(note.startswith("failed: level, ") and "knn" in note for note in summary["notes"])
    shutil.rmtree(damaged)
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "cells").glob("*.parquet")}
    again = summary_of(*options)
    assert again["failed"] == 0
    changed = [path for path in (run / "cells").glob("*.parquet") if kept[path.name] != path.stat().st_mtime_ns]
    assert [path.stem for path in changed] == rows.loc[rows["error"] != "", "key"].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("levels", "MODEL", "RUN"), "task 'levels' is no label of archive"),
        (("level", "MODEL", "RUN", "--protocols", "liner"), "did you mean 'linear'?"),
        (("level", "MODEL", "RUN", "--sensors", "sentinel2_l2a"), "no model knows sensor 'sentinel2_l2a' (models: sentinel1_grd)"),
        (("water", "MODEL", "RUN", "--ignore", "cluter"), "did you mean 'clutter'?"),
        (("level", "MODEL", "RUN", "--label-fractions", "10"), "each above 0 and at most 1"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], message: str, model: str, cluster: str, tmp_path: Path) -> None:
    names = {"MODEL": model, "RUN": str(tmp_path / "run")}
    status, _, errors = evaluate(*[names.get(a, a) for a in arguments])
    assert status == 2
    assert message in errors
    assert not (tmp_path / "run").exists()


def test_pixels_of_another_unit_are_refused_before_anything_is_computed(told: Archive, cluster: str, tmp_path: Path) -> None:
    other = write_model(tmp_path / "model", told, scale=1000)
    status, _, errors = evaluate("level", other, str(tmp_path / "run"))
    assert status == 2
    assert "std from the training mean" in errors
    assert "give pixels in 'dB'" in errors
    assert not (tmp_path / "run").exists()
