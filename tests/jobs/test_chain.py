"""The chain on a small planet through the command itself: train, be killed, resume, distil, evaluate, report."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from jobs.cli import main
from tests.cluster.told import by_mlflow, by_tensorboard, in_records, traced

TINY = ["--num-steps", "24", "--checkpoint-every", "8", "--batch-size", "4", "--window-shards", "2"]
LOOKS = ["--health-every", "8"]


def terraloom(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which has all its imports and a cluster; anything but an exit fails the test."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
        main([*arguments])
    return subprocess.CompletedProcess(arguments, int(str(ended.value.code)), output.getvalue(), errors.getvalue())


def start(cluster: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, as people do, on the session's cluster."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster}, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return output


def losses(run: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({r["step"] for r in records}) == len(records), "a step is recorded twice"
    kept = ("loss", "balance", "gradient_norm", "learning_rate")
    return {r["step"]: {k: v for k, v in r.items() if k in kept or k.startswith("l1/")} for r in records}


@pytest.fixture(scope="module")
def pretrained(archive: str, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    output = finish(start(cluster, "pretrain", "msgfm_tiny", archive, str(run), *TINY, *LOOKS, "--json"))
    assert json.loads(output.splitlines()[-1])["steps"] == 24
    return run


def test_run_folder_is_whole(pretrained: Path) -> None:
    assert sorted(losses(pretrained)) == list(range(24))
    looked_at = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines() if "feature_std" in line]
    assert [record["step"] for record in looked_at] == [7, 15, 23]
    for measure in ("effective_rank", "cosine_turned_90", "expert_load", "high_frequency"):
        assert any(name.startswith(f"{measure}/") for name in looked_at[-1])
    for name in ("config.json", "events.jsonl", "summary.json", "reconstructions.npz", "model/model.safetensors"):
        assert (pretrained / name).is_file(), name
    config = json.loads((pretrained / "config.json").read_text())
    assert config["config"]["train"]["optimiser"]["zero_stage"] == 2
    assert config["versions"]["deepspeed"] != "absent"


def test_second_run_with_same_arguments_only_reports(pretrained: Path, archive: str) -> None:
    before = (pretrained / "metrics.jsonl").read_bytes()
    done = terraloom("pretrain", "msgfm_tiny", archive, str(pretrained), *TINY, *LOOKS, "--json")
    assert done.returncode == 0, done.stderr
    assert (pretrained / "metrics.jsonl").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(pretrained: Path, archive: str) -> None:
    done = terraloom("pretrain", "msgfm_tiny", archive, str(pretrained), *TINY, *LOOKS, "--mask-ratio", "0.5")
    assert done.returncode == 2
    assert "config.mask_ratio = 0.6, not 0.5" in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_run_resumes_with_the_same_losses(pretrained: Path, archive: str, cluster: str, tmp_path: Path) -> None:
    """Whether its health is looked at or not, others are told of it or not, steps are traced or not."""
    run, options = tmp_path / "killed", [*TINY, "--health-every", "0", "--sinks", "tensorboard", "mlflow", "--profile", "2"]
    process = start(cluster, "pretrain", "msgfm_tiny", archive, str(run), *options)
    snapshot, limit = run / "checkpoints" / "checkpoint_manager_snapshot.json", time.monotonic() + 200
    while not (snapshot.is_file() and "00000008" in snapshot.read_text()):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (run / "summary.json").exists()
    finish(start(cluster, "pretrain", "msgfm_tiny", archive, str(run), *options))
    starts = [json.loads(line)["start"] for line in (run / "events.jsonl").read_text().splitlines() if '"training"' in line]
    assert starts[0] == 0
    assert starts[-1] in (8, 16)
    assert losses(run) == losses(pretrained)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, pretrained)]
    assert weights[0] == weights[1]
    everything_was_told(run)


def test_told_to_end_a_run_without_ray_saves_first(archive: str, cluster: str, tmp_path: Path) -> None:
    """By SIGTERM, as schedulers do, between two checkpoints; it goes on with the bits of a run that was left alone."""
    options = ["--workers", "0", "--num-steps", "60", "--checkpoint-every", "1000", "--batch-size", "4", "--health-every", "0"]
    run, whole = tmp_path / "told", tmp_path / "whole"
    process = start(cluster, "pretrain", "mae_tiny", archive, str(run), *options)
    limit = time.monotonic() + 200
    while not ((run / "events.jsonl").is_file() and '"training"' in (run / "events.jsonl").read_text()):
        assert process.poll() is None, "ended before it could be told"
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "told to end; a checkpoint is stored, the same command goes on from it" in errors
    saved = [json.loads(line)["step"] for line in (run / "events.jsonl").read_text().splitlines() if '"checkpoint"' in line]
    assert len(saved) == 1
    assert 0 < saved[0] < 60
    assert len((run / "metrics.jsonl").read_text().splitlines()) == saved[0]
    for folder in (run, whole):
        finish(start(cluster, "pretrain", "mae_tiny", archive, str(folder), *options))
    assert losses(run) == losses(whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, whole)]
    assert weights[0] == weights[1]


def everything_was_told(run: Path) -> None:
    """Once, of each step, to TensorBoard and to MLflow; and what was traced is there to be looked at."""
    expected = in_records([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    rounded = {name: [(step, pytest.approx(value, rel=1e-6)) for step, value in of] for name, of in expected.items()}
    assert by_tensorboard(run) == rounded
    _, shown = by_mlflow(run)
    assert shown["loss"] == expected["loss"]
    for name in expected.keys() | shown.keys():  # which keeps the speed of a step that was done twice as it was at first
        assert [step for step, _ in shown[name]] == [step for step, _ in expected[name]]
    assert min(value for _, value in expected["tokens_per_second"]) > 0
    memory = [value for _, value in expected["memory_gib"]]
    assert 0 < memory[0] <= memory[-1] < 16
    assert "aten::" in (run / "profile" / "operators.txt").read_text()
    assert len({name for name in traced(run) if name.startswith("ProfilerStep#")}) == 2


def test_a_checkpoint_is_exported_as_the_run_exports_its_last(pretrained: Path, cluster: str, tmp_path: Path) -> None:
    summary = json.loads(finish(start(cluster, "export", str(pretrained), str(tmp_path / "model"), "--json")))
    assert summary["step"] == 24
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "model", pretrained / "model")]
    assert weights[0] == weights[1]
    card = (tmp_path / "model" / "README.md").read_text()
    for said in ("recipe `msgfm_tiny`", "24 steps", "| sentinel1_grd | sigma0 | dB | 10 m | VV, VH |", "## Licence"):
        assert said in card
    inside = json.loads(finish(start(cluster, "export", str(pretrained / "model"), str(tmp_path / "again"), "--json")))
    assert (inside["step"], inside["run"]) == (24, str(pretrained))
    done = terraloom("export", str(pretrained), str(tmp_path / "other"), "--step", "8")
    assert (done.returncode, "has kept no checkpoint of step 8 (has none); give one" in done.stderr) == (2, True)


def test_student_evaluation_and_report(pretrained: Path, archive: str, tmp_path: Path) -> None:
    student, scores, page = tmp_path / "student", tmp_path / "scores", tmp_path / "page.html"
    done = terraloom(
        *("distill", "student_tiny", str(pretrained), archive, str(student), "--num-steps", "6", "--batch-size", "4"),
        *("--students", "vit_tiny", "--json"),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["times_smaller"] > 1
    assert sorted(facts["models"]) == ["first", "vit_tiny"]
    weights = [(student / name / "model.safetensors").read_bytes() for name in ("model", "models/first", "models/vit_tiny")]
    assert weights[0] == weights[1] != weights[2]
    options = [
        "--also",
        str(student),
        "--seeds",
        "2",
        "--finetune-steps",
        "3",
        "--sensors",
        "sentinel2_l2a",
        "sentinel1_grd",
        "--json",
    ]
    done = terraloom("evaluate", "landcover", str(pretrained), str(scores), *options)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])["table"]
    untrained = {"random initialisation", "random initialisation (student)"}
    models = {"pretrained", "student", *untrained, "image statistics", "supervised from scratch"}
    for sensor in ("sentinel2_l2a", "sentinel1_grd"):
        assert {row["model"] for row in table if row["sensors"] == sensor} == models
    assert all(0 <= row["mean"] <= 1 for row in table)
    done = terraloom("report", str(pretrained), str(student), str(scores), "--out", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    for heading in ("Evaluation: landcover", "Reconstructions", "Co-registration", "Samples", "Training: distill"):
        assert f"<h2>{heading}" in text
    assert "supervised from scratch" in text
    assert "effective rank" in text
    assert not re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=[\"']?https?:", text)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["embed"], "MODEL_RUN SOURCE [OUT]"),
        (["report"], "RUNS ..."),
        (["simulate"], "OUT"),
        (["pretrain", "mae_tiny"], "ARCHIVE RUN"),
    ],
)
def test_help_names_what_is_asked_for(command: list[str], named: str) -> None:
    done = terraloom(*command, "--help")
    assert done.returncode == 0
    assert f" {named}" in done.stdout.partition("\n\n")[0]
    assert "type: ignore" not in done.stdout


def test_a_student_of_one_sensor_needs_no_other(pretrained: Path, archive: str, tmp_path: Path) -> None:
    size = ("--workers", "0", "--num-steps", "2", "--batch-size", "2")
    done = terraloom("distill", "student_tiny", str(pretrained), archive, str(tmp_path), "--sensors", "sentinel1_grd", *size)
    assert done.returncode == 0, done.stderr
    assert [one["sensors"] for one in json.loads((tmp_path / "plan.json").read_text())["sets"]] == [["sentinel1_grd"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "msgfn", "ARCHIVE", "RUN"], "did you mean 'msgfm'?"),
        (["pretrain", "msgfm_tiny", "/no/archive", "RUN"], "no archive at '/no/archive'"),
        (["pretrain", "msgfm_tiny", "ARCHIVE", "RUN", "--mask-ration", "0.5"], "did you mean '--mask-ratio'?"),
        (
            ["pretrain", "msgfm_tiny", "ARCHIVE", "RUN", "--workers", "64", "--lanes", "64", "--batch-size", "1"],
            "use fewer workers",
        ),
        (["pretrain", "msgfm_tiny", "ARCHIVE", "RUN", "--lanes", "3"], "3 lanes cannot be shared evenly by 2 workers"),
        (["distill", "student_tiny", "/no/run", "ARCHIVE", "RUN"], "'/no/run' is no run"),
        (["evaluate", "landcover", "/no/run", "RUN"], "'/no/run' is no run"),
        (["coregister", "/no/scenes", "RUN"], "no STAC catalog at '/no/scenes'"),
        (["ingest", "oscdd", "/tmp", "RUN"], "did you mean 'oscd'?"),
        (["ingest", "oscd", "/no/folder", "RUN"], "no OSCD city under '/no/folder'"),
        (["verify", "/no/archive"], "no archive at '/no/archive'"),
        (["scan", "/no/folder"], "folder '/no/folder' is empty or does not exist"),
        (["scan", "/", "--sensor", "sentinel2"], "sensor 'sentinel2' is unknown"),
        (["report", "/no/run"], "'/no/run' is no run"),
        (["trane"], "job 'trane' is unknown"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, archive: str, tmp_path: Path) -> None:
    names = {"ARCHIVE": archive, "RUN": str(tmp_path / "run")}
    done = terraloom(*[names.get(a, a) for a in arguments])
    assert done.returncode == 2, done.stderr
    shown = [line for line in done.stderr.splitlines() if line.startswith("terraloom: ")]
    assert len(shown) == 1
    assert message in shown[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_archive_of_another_version_is_refused(archive: str, cluster: str, tmp_path: Path) -> None:
    other = tmp_path / "archive"
    other.mkdir()
    index = json.loads((Path(archive) / "archive.json").read_text())
    (other / "archive.json").write_text(json.dumps(index | {"schema_version": 99}))
    process = start(cluster, "pretrain", "msgfm_tiny", str(other), str(tmp_path / "run"))
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 2
    assert "has schema version 99, this program reads version 2" in errors
    assert "Traceback" not in errors


def test_folder_of_corrupt_scenes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rgb_aerial_20200101.tif").write_bytes(b"II*\0 this is no image")
    done = terraloom("scan", str(tmp_path))
    assert done.returncode == 2
    assert "cannot read" in done.stderr
    assert not (tmp_path / "scenes.json").exists()


def test_output_is_the_summary_alone_until_the_process_ends(archive: str) -> None:
    """Ray prints notices about its cluster whenever they come, also while the process ends."""
    program = """
import atexit, sys
from jobs import cli
atexit.register(lambda: print("a notice at the end"))
cli.JOBS["inspect"] = lambda arguments, inspect=cli.JOBS["inspect"]: print("a notice before it") or inspect(arguments)
cli.main(sys.argv[1:])
"""
    command = [sys.executable, "-c", program, "inspect", archive, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)
    assert done.stderr.splitlines()[-2:] == ["a notice before it", "a notice at the end"]
