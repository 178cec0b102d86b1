"""`terraloom estimate`: what it says, what changes with the cluster, and what wrong input is told."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.archives import write_statistics
from jobs.cli import main
from jobs.estimate import EstimateConfig, estimate
from jobs.recipes import load_recipe
from tests.bench.calibrated_tiles import calibrated_archive

KEYS = {"fits", "memory_gib_per_gpu", "step_seconds", "samples_per_second", "hours", "bottleneck"}


@pytest.fixture(autouse=True)
def _standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command leaves standard output turned away, as its process is to end."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    output = sys.stdout
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *arguments, "--json"])
    sys.stdout = output
    assert not ended.value.code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["estimate", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_json_has_the_keys_and_hangs_together(capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "mae_tiny", "--gpus", "2", "--gpu", "a100", "--gpu-hour-price", "3", "--num-steps", "1000")
    assert set(found) >= KEYS
    assert found["fits"] is True
    assert list(found["memory_gib_per_gpu"]) == ["0", "1", "2", "3"]
    assert found["samples_per_second"] == pytest.approx(2 * 16 / found["step_seconds"], rel=1e-3)
    assert found["hours"] == pytest.approx(1000 * found["step_seconds"] / 3600, rel=1e-3)
    assert found["cost"]["total"] == pytest.approx(3 * 2 * found["hours"], rel=1e-3)
    assert found["tokens_per_second"] == pytest.approx(256 * found["samples_per_second"], rel=1e-3)
    assert found["bottleneck"] in found["seconds_of"]
    assert found["memory_gib_by_micro_batch"]["16"] == found["memory_gib_per_gpu"]


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "mae_tiny", "--gpus", "2", "--gpu", "l4"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "bottleneck: " in shown
    assert all(f"ZeRO {stage}" in shown for stage in range(4))


def test_a_recipes_options_count() -> None:
    small, large = (load_recipe("pretrain", "mae_tiny") for _ in range(2))
    one = estimate(small, EstimateConfig(gpus=2))
    object.__setattr__(large.train, "batch_size", 64)
    other = estimate(large, EstimateConfig(gpus=2))
    assert other["memory_gib_per_gpu"]["2"] > one["memory_gib_per_gpu"]["2"]
    assert other["gflops_per_sample"] == one["gflops_per_sample"]


def test_what_is_asked_of_the_optimiser_counts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("mae_tiny", "--gpus", "2", "--gpu", "a100")
    plain, offloaded = said(capsys, *arguments), said(capsys, *arguments, "--offload", "True", "--host-memory-gb-per-second", "1")
    assert plain["host_memory_gib_per_machine"] == 0 < offloaded["host_memory_gib_per_machine"]
    assert "host memory" not in plain["seconds_of"]
    assert offloaded["bottleneck"] == "host memory"
    assert offloaded["seconds_of"]["host link"] > plain["seconds_of"]["host link"]
    averaged = said(capsys, *arguments, "--average-momentum", "0.999")
    assert averaged["frozen_numbers"] - plain["frozen_numbers"] > 0.5 * plain["parameters"]
    assert averaged["seconds_of"]["memory bandwidth"] > plain["seconds_of"]["memory bandwidth"]


def test_sizes_of_tiles_count_as_often_as_they_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("mae_tiny", "--gpus", "2", "--gpu", "a100", "--batch-size", "256", "--sizes-m")
    small, large, both = (said(capsys, *arguments, *sizes) for sizes in (("320",), ("640",), ("320", "640")))
    assert small["gflops_per_sample"] < large["gflops_per_sample"]
    assert both["gflops_per_sample"] == pytest.approx((small["gflops_per_sample"] + large["gflops_per_sample"]) / 2, rel=1e-3)
    assert small["memory_gib_by_micro_batch"]["256"]["2"] < both["memory_gib_by_micro_batch"]["256"]["2"]
    assert both["memory_gib_by_micro_batch"] == large["memory_gib_by_micro_batch"]
    assert both["tokens_per_second"] * both["step_seconds"] == pytest.approx(512 * (64 + 256) / 2, rel=1e-2)


def test_slow_parts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    starved = said(capsys, "mae_tiny", "--gpus", "2", "--storage-gb-per-second", "1e-6")
    assert starved["bottleneck"] == "storage"
    assert starved["step_seconds"] == starved["seconds_of"]["storage"]
    few = said(capsys, "mae_tiny", "--gpus", "2", "--threads", "1")
    more = said(capsys, "mae_tiny", "--gpus", "2", "--threads", "100")
    assert few["seconds_of"]["decoding"] == pytest.approx(100 * more["seconds_of"]["decoding"], rel=1e-3)
    assert few["decoding_cores_needed"] == more["decoding_cores_needed"], "what GPUs need, whatever they get"
    apart = said(capsys, "mae_tiny", "--gpus", "2", "--gpus-per-machine", "1", "--network-gb-per-second", "1e-3")
    assert apart["bottleneck"] == "interconnect"


def test_an_archive_gives_sensors_sizes_and_shards(capsys: pytest.CaptureFixture[str]) -> None:
    with calibrated_archive(2, 16) as archive:
        write_statistics(archive)
        found = said(capsys, "msgfm_tiny", "--gpus", "2", "--archive", archive.url)
        files = [path for path in Path(archive.url).glob("shards/*/*/*/c/**/*") if path.is_file()]
        stored = sum(path.stat().st_size for path in files) / (2 * 16)
        rate = found["storage_gb_per_second_needed"] * 1e9 / stored
        # 16 samples a shard, of two sensors: its part of the catalog, and two arrays each in two objects.
        assert found["requests_per_second_needed"] == pytest.approx(rate * 9 / 16, rel=0.05)
    assert np.isfinite(rate)


def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "gpu 'h2000' is unknown (known: b200, h200" in refused(capsys, "mae_tiny", "--gpu", "h2000")
    assert "lanes cannot be shared evenly by 3 workers" in refused(capsys, "mae_tiny", "--gpus", "3")
    line = refused(capsys, "mae_tini", "--gpus", "2")
    assert "did you mean 'mae_tiny'?" in line
    assert "must be above 0" in refused(capsys, "mae_tiny", "--gpus", "0")
    assert "did you mean '--gpus'?" in refused(capsys, "mae_tiny", "--gpuss", "2")
    line = refused(capsys, "mae_tiny", "--gpus", "2", "--archive", str(tmp_path / "none"))
    assert str(tmp_path / "none") in line
