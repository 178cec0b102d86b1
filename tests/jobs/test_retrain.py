"""Rounds of retraining on a small planet with new dates: one challenger promoted, one of broken scenes not; killed at every stage."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from cluster.lease import holding
from cluster.registry import Registry
from jobs.arguments import flat_options, parse_recipe
from jobs.coregister import coregister
from jobs.pretrain import pretrain
from jobs.retrain import retrain, roll_back, status
from jobs.retraining.rounds import STAGES
from jobs.simulate import scan_folder, simulate_planet
from models.encoder import Encoder
from pipeline.coregister import CoregisterConfig
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from pipeline.simulation.config import SimulateConfig

LIMIT_S = 400
RECIPE = "mae_tiny"
OPTIONS = {"num_steps": 100, "workers": 0, "batch_size": 16, "checkpoint_every": 10, "health_every": 0, "learning_rate": 3e-3}
UNREGISTERED = CoregisterConfig(register=False)
LATER = ("202408",)
"""In the names of the scenes that come with the second delivery."""


@dataclass(frozen=True)
class Place:
    """An archive, a suite, a folder that scenes arrive in, and a schedule."""

    root: Path
    base: Path

    @property
    def schedule(self) -> str:
        return str(self.root / "schedule.yaml")

    @property
    def rounds(self) -> Path:
        return self.root / "retraining" / "rounds"

    def arrive(self, is_second: bool = False) -> None:
        """Have the scenes of a delivery arrive; those of the second are noise."""
        (self.root / "incoming").mkdir(exist_ok=True)
        for path in sorted((self.base / "2024" / "scenes").glob("*.tif")):
            if any(part in path.name for part in LATER) == is_second:
                shutil.copy(path, self.root / "incoming" / path.name)
                if is_second and "cloud" not in path.name:
                    drown(self.root / "incoming" / path.name)
        scan_folder(str(self.root / "incoming"), None, None, None)


def drown(path: Path) -> None:
    """Replace every pixel by noise over all that its sensor can measure: nothing of the scene is left."""
    sensor = load_sensor(path.name.partition("_2024")[0])
    low, high = np.array(sensor.valid_range) / sensor.scale
    with rasterio.open(path, "r+") as file:
        noise = np.random.default_rng(0).uniform(low + 1, high, (file.count, *file.shape))
        file.write(noise.astype(sensor.dtype))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Have every process of these tests compute with one thread, so that each makes the same bits."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(one_thread: None, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planet of 1.28 km in two years, the archive of the first, and a champion that sees nothing: its stems are 0."""
    folder = tmp_path_factory.mktemp("retrain")
    for year, dates in ((2023, 4), (2024, 2)):
        config = SimulateConfig(size_m=1280, satellite_dates=dates, aerial_dates=0, num_changes=0, cloud_cover=0.0, year=year)
        simulate_planet(str(folder / str(year)), config)
    archive = str(folder / "archive")
    grid = Grid(site_size_m=160, shard_sites=2)
    coregister(str(folder / "2023" / "scenes"), archive, grid, UNREGISTERED, str(folder / "2023" / "truth"))
    recipe = parse_recipe("pretrain", RECIPE, flat_options({**OPTIONS, "num_steps": 1, "learning_rate": 1e-12}))
    pretrain(RECIPE, recipe, archive, str(folder / "drawn"))
    encoder = Encoder.load(folder / "drawn" / "model")
    with torch.no_grad():
        for parameter in encoder.stem.parameters():
            parameter.zero_()
    encoder.save(folder / "blind")
    pretrain(RECIPE, recipe, archive, str(folder / "champion"), str(folder / "blind"))
    return folder


def made(root: Path, base: Path) -> Place:
    root.mkdir()
    for name in ("archive", "suite"):
        shutil.copytree(base / "archive", root / name)
    suite = {"archive": "suite", "tasks": ["landcover"], "target": "landcover", "protocols": ["linear"], "seeds": 1}
    schedule = {
        **{"scenes": "incoming", "archive": "archive", "folder": "retraining", "champion": str(base / "champion")},
        **{"recipe": RECIPE, "options": OPTIONS, "replay": 0.25, "labels": str(base / "2023" / "truth")},
        **{"suite": {**suite, "sensors": ["sentinel2_l2a"]}, "registration": {"register": False}},
    }
    (root / "schedule.yaml").write_text(yaml.safe_dump(schedule))
    place = Place(root, base)
    place.arrive()
    return place


@pytest.fixture(scope="module")
def place(base: Path) -> Place:
    return made(base / "whole", base)


def elsewhere(cluster: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, on the tests' cluster: one that has trained before may make other bits."""
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def to_the_end(place: Place, cluster: str) -> dict[str, Any]:
    ended = elsewhere(cluster, "-m", "jobs.cli", "retrain", place.schedule, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first(place: Place, cluster: str) -> dict[str, Any]:
    """The summary of the first round, which nothing disturbed."""
    return to_the_end(place, cluster)


def test_a_start_is_that_of_its_source(base: Path) -> None:
    """Not rounded to bf16: at a rate of 1e-12 weights move by no more than that."""
    blind, champion = (Encoder.load(base / name).state_dict() for name in ("blind", "champion/model"))
    assert all(torch.allclose(blind[name], champion[name], rtol=0, atol=1e-11) for name in blind)


def test_a_challenger_that_sees_is_promoted(place: Place, first: dict[str, Any]) -> None:
    assert (first["outcome"], first["champion"]) == ("promoted", 1)
    (line,) = first["lines"]
    assert line["low"] > 0
    assert first["reason"].startswith("better on landcover (sentinel2_l2a, linear): accuracy")
    extended = json.loads((place.rounds / "0001" / "extend.json").read_text())
    assert extended["train_tiles"] == {"dsm": 40, "sentinel1_grd": 40, "sentinel2_l2a": 40}
    trained = json.loads((place.rounds / "0001" / "train.json").read_text())
    old, new = trained["old_samples"], trained["new_samples"]
    assert new == 120
    assert old > 120
    assert trained["keep"] == pytest.approx(new * 0.25 / 0.75 / old)
    event = next(
        json.loads(text) for text in (place.rounds / "0001/run/events.jsonl").read_text().splitlines() if '"start"' in text
    )
    assert event["drawn"] == event["not_taken"] == []
    drift = json.loads((place.rounds / "0001" / "drift.json").read_text())
    assert set(drift["sensors"]) == {"dsm", "sentinel1_grd", "sentinel2_l2a"}
    again = retrain(place.schedule)
    assert (again["outcome"], again["scenes"], again["champion"]) == ("nothing new", 0, 1)


def test_broken_scenes_make_no_champion(place: Place, first: dict[str, Any], cluster: str) -> None:
    place.arrive(is_second=True)
    second = to_the_end(place, cluster)
    assert (second["outcome"], second["champion"]) == ("declined", 1)
    told = ("worse on landcover (sentinel2_l2a, linear): accuracy", "not better on the target, landcover (sentinel2_l2a, linear)")
    assert second["reason"].startswith(told)
    decided = json.loads((place.rounds / "0002" / "decide.json").read_text())
    assert decided["is_suspect"] == second["reason"].startswith("worse")
    drift = json.loads((place.rounds / "0002" / "drift.json").read_text())
    assert {name: found["word"] for name, found in drift["sensors"].items()} == {"sentinel1_grd": "large", "sentinel2_l2a": "large"}
    for found in drift["sensors"].values():
        assert found["embedding"]["word"] == "large"
        assert {band["word"] for band in found["bands"].values()} == {"large"}
        assert all("202408" in band["farthest"] for band in found["bands"].values())
    found = status(place.schedule)
    assert [one["outcome"] for one in found["rounds"]] == ["promoted", "declined"]
    assert [(one["number"], one["over"]) for one in found["history"]] == [(0, None), (1, 0)]
    with holding(str(place.root / "retraining" / "lock"), "somebody"):
        assert status(place.schedule)["held_by"] == "somebody"
        with pytest.raises(InputError, match="is held by somebody"):
            retrain(place.schedule)
    assert roll_back(place.schedule, "clouds at the coast")["number"] == 0
    with pytest.raises(InputError, match="no champion before the present one"):
        roll_back(place.schedule, "once more")
    (place.root / "suite" / "catalog" / next(iter(os.listdir(place.root / "suite" / "catalog")))).unlink()
    with pytest.raises(InputError, match="restore it, or begin anew with another folder"):
        retrain(place.schedule)


KILLED = """
import os, signal, sys
from pkgutil import resolve_name
from jobs import cli

owner, name, stage, *arguments = sys.argv[1:]
owner = resolve_name(owner)
go_on = getattr(owner, name)

def die_or_go_on(*given):
    if stage in given or not stage:
        os.kill(os.getpid(), signal.SIGKILL)
    return go_on(*given)

setattr(owner, name, die_or_go_on)
cli.main(arguments)
"""
"""A `terraloom` that the kernel kills when it is about to do something: no lock is given back, nothing is tidied up."""

ROUND = "jobs.retraining.rounds:Round"
MOMENTS = (
    (None, "jobs.retraining.rounds:Rounds", "begin", ""),
    ("extend", "jobs.coregister", "write_statistics", ""),  # the shards are there
    ("drift", ROUND, "finish", "drift"),
    ("train", "cluster.checkpoints:Kept", "add", ""),  # the first checkpoint is there
    ("train", ROUND, "finish", "train"),
    ("compare", ROUND, "finish", "compare"),
    ("decide", "cluster.registry:Registry", "promote", ""),  # the challenger is registered
    ("decide", ROUND, "finish", "decide"),
)
"""The stage that a round is in, and what it is about to do: call a function of an owner, as one told of a stage if there is one."""


def test_killed_at_every_stage_it_ends_the_same(base: Path, place: Place, first: dict[str, Any], cluster: str) -> None:
    """By the kernel, each time later, the same round going on in the same folder."""
    assert {stage for stage, *_ in MOMENTS} == {None, *STAGES}
    other = made(base / "killed", base)
    for stage, *moment in MOMENTS:
        ended = elsewhere(cluster, "-c", KILLED, *moment, "retrain", other.schedule)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert [one.get("stage") for one in status(other.schedule)["rounds"]] == ([stage] if stage else [])
    done = to_the_end(other, cluster)
    assert left_by(other) == left_by(place)
    weights = [Path(summary["model"], "model", "model.safetensors").read_bytes() for summary in (done, first)]
    assert weights[0] == weights[1]
    assert {**done, "folder": None, "model": None} == {**first, "folder": None, "model": None}
    assert [(one["number"], one["over"], one["reason"]) for one in status(other.schedule)["history"]] == [
        (0, None, "the first"),
        (1, 0, first["reason"]),
    ]


def left_by(place: Place) -> dict[str, Any]:
    """Return what the stages of the first round found, and the versions of the registry, whichever folder they are in."""
    stages = {stage: json.loads((place.rounds / "0001" / f"{stage}.json").read_text()) for stage in STAGES}
    versions = [version.facts for version in Registry(str(place.root / "retraining" / "registry")).versions()]
    return json.loads(json.dumps({**stages, "versions": versions}).replace(str(place.root), ""))
