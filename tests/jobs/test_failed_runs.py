"""A run that has collapsed is ended: one line that says why, all that was measured kept, and no second try."""

import json
from pathlib import Path

import pytest

from cluster.watch import is_collapsed
from jobs.cli import main

COLLAPSING = ["--weight-decay", "1e6", "--learning-rate", "5e-7", "--warmup-steps", "1"]
"""Half of every weight goes in each step, until what is compared of all tiles is alike."""
OPTIONS = ["--num-steps", "40", "--batch-size", "4", "--window-shards", "2", "--health-every", "2", "--checkpoint-every", "100"]


def test_a_collapsed_run_ends_with_the_diagnosis(archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", "simclr_tiny", archive, str(run), *OPTIONS, *COLLAPSING])
        assert ended.value.code == 1
        shown = capsys.readouterr().err
        assert "Traceback" not in shown
        (line,) = [line for line in shown.splitlines() if line.startswith("terraloom: ")]
        said.append(line)
    assert said[0] == said[1]
    assert "the run has collapsed" in said[0]
    assert "lower the learning rate" in said[0]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["training", "failed"]
    assert f"terraloom: {events[1]['reason']}" == said[0]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) < 40
    assert [record["step"] for record in steps] == list(range(len(steps)))
    sensors = [name.partition("/")[2] for name in steps[-1] if name.startswith("feature_std/")]
    assert sensors
    assert all(is_collapsed(steps[-1], sensor) for sensor in sensors)
    assert not (run / "summary.json").exists()
    assert not (run / "model").exists()
