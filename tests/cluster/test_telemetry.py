"""What is told about a run: each step once to everyone however often it goes on, and no service that fails ends it."""

import json
import os
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from cluster.devices import peak_memory_gib
from cluster.run import Run
from cluster.sinks import SinkName, require_sinks
from cluster.telemetry import Recorder, TokenCount
from cluster.trace import Trace
from jobs.recipes import load_recipe
from pipeline.errors import InputError
from tests.cluster.test_backbones import OPTICAL, RADAR, a_batch
from tests.cluster.told import by_mlflow, by_tensorboard, in_records, traced

BOTH: tuple[SinkName, ...] = ("tensorboard", "mlflow")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    settings = {"train": {"num_steps": 20, "view": {"kind": "single"}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": settings}))
    return Run(str(tmp_path / "run"), "pretrain")


def record(run: Run, sinks: tuple[SinkName, ...], start: int, stop: int, scale: float, finishes: bool = True) -> None:
    """Record steps as a run does that finishes, or is not heard of any more."""
    recorder = Recorder(run, "mae_tiny", 20, start, 1, require_sinks(sinks, run))
    for step in range(start, stop):
        health = {f"expert_load/{sensor}": [0.5, 0.5] for sensor in ("dsm", "rgb")} if step % 5 == 4 else {}
        recorder.record(step, "dsm+rgb", {"loss": scale * step, "l1/dsm->rgb": step + 0.5, **health}, {"memory_gib": 1.0})
        if step % 3 == 2:
            recorder.flush()
    recorder.flush()
    if finishes:
        recorder.close(is_finished=True)


def records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run.path("metrics.jsonl")).read_text().splitlines()]


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, Path(run.path("events.jsonl")).read_text().splitlines())
    return [event for event in found if event["event"] == kind]


@pytest.mark.parametrize("start", [5, 0])
def test_no_step_is_told_twice_when_a_run_goes_on(run: Run, start: int) -> None:
    record(run, BOTH, 0, 9, scale=1.0, finishes=False)
    while not (Path(run.path("mlflow.json")).exists() and len(by_mlflow(Path(run.url))[1].get("memory_gib", ())) == 9):
        time.sleep(0.05)
    assert by_mlflow(Path(run.url))[0].info.status == "RUNNING"
    record(run, BOTH, start, 20, scale=2.0)
    expected = in_records(records(run))
    assert expected["loss"] == [(step, step * (1.0 if step < start else 2.0)) for step in range(20)]
    assert by_tensorboard(Path(run.url)) == expected
    begun, shown = by_mlflow(Path(run.url))
    told_first = [(step, step * (1.0 if step < 9 else 2.0)) for step in range(20)]  # what was told cannot be taken back
    assert shown == {**expected, "loss": told_first}
    assert begun.info.status == "FINISHED"
    assert begun.data.params == {"train.num_steps": "20", "train.view.kind": "single"}
    assert begun.data.tags["recipe"] == "mae_tiny"
    assert {path.name for path in Path.cwd().iterdir()} == {"run"}


def test_a_sink_that_comes_later_is_told_what_was(run: Run) -> None:
    record(run, (), 0, 9, scale=1.0)
    record(run, BOTH, 9, 12, scale=1.0)
    assert by_tensorboard(Path(run.url)) == by_mlflow(Path(run.url))[1] == in_records(records(run))


@pytest.mark.parametrize("name", BOTH)
def test_a_service_that_fails_is_left_out(run: Run, name: SinkName) -> None:
    recorder = Recorder(run, "mae_tiny", 20, 0, 1, require_sinks((name,), run))
    for step in range(6):
        recorder.record(step, "dsm", {"loss": 1.0}, {})
        recorder.flush()
        if step == 2:
            recorder._sinks[name].end(is_finished=True)  # all told so far is out of our hands
            shutil.rmtree(run.path(name))
            Path(run.path(name)).write_text("where the folder was")
    recorder.close(is_finished=True)
    assert [r["step"] for r in records(run)] == list(range(6))
    (event,) = events(run, "sink_failed")
    assert event["sink"] == name
    assert event["because"]


@pytest.mark.parametrize(
    ("name", "url", "uri", "message"),
    [
        ("tensorboard", "s3://earth/run", None, "'s3://earth/run' is not a local one; give one that is, or leave"),
        ("mlflow", "s3://earth/run", None, "not a local one; give one that is, or set MLFLOW_TRACKING_URI"),
        ("mlflow", "s3://earth/run", "http://someone:planted@127.0.0.1:1", "no MLflow at MLFLOW_TRACKING_URI .*; start it"),
    ],
)
def test_what_a_sink_needs_is_said_in_a_line(
    name: SinkName, url: str, uri: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=message) as refused:
        require_sinks((name,), Run(url, "pretrain"))
    assert "planted" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", BOTH)
def test_a_missing_extra_is_named(run: Run, name: SinkName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as Python says that there is none
    with pytest.raises(InputError, match=rf"sink '{name}' needs a package that is missing; pip install 'terraloom\[{name}\]'"):
        require_sinks((name,), run)


def test_tokens_are_those_that_enter_the_backbone_in_training() -> None:
    objective = load_recipe("pretrain", "mae_tiny").build((OPTICAL, RADAR), torch.Generator().manual_seed(0))
    tokens, batch = TokenCount(objective.encoder.backbone), a_batch(0)
    objective(batch, torch.Generator().manual_seed(0))
    # One sensor a step, 4 samples of 3 dates, 4 x 4 tokens of 40 m on 160 m, of which a quarter is seen.
    assert tokens.take() == 4 * 3 * 4
    assert tokens.take() == 0
    objective.eval()
    objective(batch, torch.Generator().manual_seed(0))
    assert tokens.take() == 0


def test_peak_memory_is_what_the_system_says() -> None:
    (said,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    # Linux begins with what the process had that started this one.
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert 0.98 * int(said.split()[1]) / 2**20 <= peak_memory_gib(torch.device("cpu")) <= machine


@pytest.mark.parametrize(
    ("start", "num_steps", "count", "expected"),
    [(0, 30, 2, [20, 21]), (4, 30, 2, [24, 25]), (4, 9, 2, [7, 8]), (8, 9, 2, [8]), (0, 3, 5, [0, 1, 2])],
)
def test_a_trace_holds_its_steps_alone(run: Run, start: int, num_steps: int, count: int, expected: list[int]) -> None:
    trace = Trace(run, start, num_steps, count, torch.device("cpu"))
    for step in range(start, num_steps):
        with torch.profiler.record_function(f"training step {step}"):
            torch.ones(64, 64) @ torch.ones(64, 64)
        trace.step()
    found = {name for name in traced(Path(run.url)) if name.startswith("training step")}
    assert sorted(found) == [f"training step {step}" for step in expected]
    assert "aten::mm" in Path(run.path("profile/operators.txt")).read_text()
    (event,) = events(run, "profiled")
    assert (event["first_step"], event["last_step"]) == (expected[0], expected[-1])


def test_ray_exports_the_latest_numbers(cluster: str, run: Run) -> None:
    """At the endpoint of the node's agent, which is what Prometheus reads."""
    record(run, (), 0, 6, scale=1.5)
    node, limit = ray.nodes()[0], time.monotonic() + 120
    found: dict[str, float] = {}
    while not {"loss", "l1", "step"} <= found.keys():
        assert time.monotonic() < limit
        with urllib.request.urlopen(
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10
        ) as answer:
            lines = [line for line in answer.read().decode().splitlines() if run.url in line]
        found = {line.partition("{")[0].removeprefix("ray_terraloom_"): float(line.rsplit(" ", 1)[1]) for line in lines}
        time.sleep(0.5)
    assert all('recipe="mae_tiny"' in line for line in lines)
    assert found == {"step": 5.0, "loss": 7.5, "l1": 5.5, "memory_gib": 1.0}
    assert any('sensor="dsm->rgb"' in line for line in lines if "_l1{" in line)
