"""What a round is told, which scenes are new, which count, how far they are, and who wins: by worked numbers."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.registry import Registry
from jobs.retraining.context import Context
from jobs.retraining.drift import Look, band_distances, energy_distance, sensor_drift
from jobs.retraining.find import new_scenes
from jobs.retraining.rounds import Rounds
from jobs.retraining.schedule import Schedule, read_schedule
from jobs.retraining.verdict import verdict_of
from pipeline.errors import InputError
from pipeline.sensors import load_sensor
from pipeline.statistics import statistics_of

GIVEN: dict[str, Any] = {
    **{"scenes": "s3://bucket/scenes.json", "archive": "data/archive", "folder": "../retraining", "champion": "/runs/first"},
    **{"recipe": "mae_tiny", "options": {"num_steps": 4}},
    **{"suite": {"archive": "suite", "tasks": ["landcover", "flood"], "target": "flood"}},
}


def written(folder: Path, content: Any) -> str:
    (folder / "schedule.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(folder / "schedule.yaml")


def test_paths_of_a_schedule_are_relative_to_it(tmp_path: Path) -> None:
    found = read_schedule(written(tmp_path, {**GIVEN, "registry": "mlflow:land"}))
    assert (found.scenes, found.archive, found.folder, found.champion, found.suite.archive, found.registry) == (
        *("s3://bucket/scenes.json", f"{tmp_path}/data/archive", f"{tmp_path.parent}/retraining", "/runs/first"),
        *(f"{tmp_path}/suite", "mlflow:land"),
    )
    assert found.configured().train.num_steps == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"achive": "x"}, r"'achive' is unknown .*; did you mean 'archive'\?"),
        ({"replay": 1.0}, "replay: Input should be less than 1"),
        ({"recipe": "mae_tinny"}, r"pretrain recipe 'mae_tinny' is unknown .* did you mean 'mae_tiny'\?"),
        (
            {"options": {"num_step": 3}},
            r"argument '--num-step' is unknown to 'terraloom pretrain mae_tiny'; did you mean '--num-steps'\?",
        ),
        ({"options": {"replay": 0.1}}, "options has replay, which each round sets by itself; leave it out"),
        ({"suite": {**GIVEN["suite"], "target": "fire"}}, "suite: target 'fire' is none of the tasks landcover, flood"),
        ({"suite": {**GIVEN["suite"], "seed": 1}}, r"'suite.seed' is unknown .*; did you mean 'seeds'\?"),
        ({"suite": {**GIVEN["suite"], "archive": "data/archive"}}, "the suite needs one of its own, that stays as it is"),
        ({"registration": {"max_shift": 3}}, r"'registration.max_shift' is unknown .*; did you mean 'max_shift_m'\?"),
    ],
)
def test_wrong_schedules_are_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_schedule(written(tmp_path, {**GIVEN, **change}))
    assert "\n" not in str(raised.value)


def test_what_is_no_schedule_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no schedule at '.*/none.yaml'; expected a YAML file"):
        read_schedule(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="is no YAML"):
        read_schedule(written(tmp_path, "scenes: [a"))
    with pytest.raises(InputError, match="holds a list, expected keys and values"):
        read_schedule(written(tmp_path, ["scenes"]))


def line(task: str, gain: float, low: float, high: float) -> dict[str, Any]:
    about = {"task": task, "sensors": "sentinel2_l2a", "protocol": "linear", "metric": "accuracy", "champion": 0.5}
    return {**about, "challenger": 0.5 + gain, "gain": gain, "low": low, "high": high}


@pytest.mark.parametrize(
    ("lines", "is_promoted", "is_suspect", "said"),
    [
        (
            [("flood", 0.1, 0.02, 0.2), ("landcover", -0.01, -0.04, 0.02)],
            True,
            False,
            r"better on flood .*0.500 to 0.600.*none of 2",
        ),
        (
            [("flood", 0.1, 0.02, 0.2), ("landcover", -0.05, -0.09, -0.01)],
            False,
            True,
            r"^worse on landcover .*-0.050, 95 %: -0.090",
        ),
        ([("flood", 0.1, -0.02, 0.2), ("landcover", 0.3, 0.2, 0.4)], False, False, "^not better on the target, flood "),
        ([("flood", 0.1, 0.0, 0.2)], False, False, "not better on the target"),
        ([("flood", -0.1, -0.2, -0.05)], False, True, "worse on flood"),
        ([("flood", float("nan"), float("nan"), float("nan"))], False, False, "not better on the target"),
        ([("flood", 0.1, 0.05, 0.2), ("flood", 0.0, -0.1, 0.1)], True, False, "none of 2 comparisons"),
    ],
)
def test_a_challenger_wins_beyond_the_interval_or_not(
    lines: list[tuple[str, float, float, float]], is_promoted: bool, is_suspect: bool, said: str
) -> None:
    verdict = verdict_of([line(*one) for one in lines], "flood")
    assert (verdict.is_promoted, verdict.is_suspect) == (is_promoted, is_suspect)
    assert re.search(said, verdict.reason)


def test_distances_of_worked_numbers() -> None:
    """Heights moved by 3 m are 3 m apart; of two pairs of points 10 apart, all but their own spread lies between."""
    dsm = load_sensor("dsm")
    flat = np.linspace(100, 110, 1024, dtype=np.float32).reshape(1, 32, 32)
    one, other = (statistics_of(dsm, [(dsm.to_stored(flat + by), np.ones((32, 32), bool))]) for by in (0, 3))
    bin_m = (dsm.valid_range[1] - dsm.valid_range[0]) / 4096
    assert band_distances(one, other, dsm, np.array([2.0]))[0] == pytest.approx(1.5, abs=bin_m / 2)
    points = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert energy_distance(points, points) == 0
    # E|X - Y| = 10, E|X - X'| = E|Y - Y'| = 1 / 2
    assert energy_distance(points, points[::-1] + [10, 0]) == pytest.approx(20 - 1)


def test_drift_is_measured_against_what_is_usual() -> None:
    """Old scenes are up to 1 m apart: a new one as far is none, one at 1.5 m is small, one at 9 m is large."""
    dsm, draw = load_sensor("dsm"), np.random.default_rng(0)

    def look(height_m: float) -> Look:
        heights = height_m + np.linspace(-1, 1, 1024, dtype=np.float32).reshape(1, 32, 32)
        pixels = statistics_of(dsm, [(dsm.to_stored(heights), np.ones((32, 32), bool))] * 4)
        return Look(pixels, draw.normal(height_m, 0.1, (6, 3)))

    old = {f"old {number}": look(100 + number / 2) for number in range(3)}
    words = {far: sensor_drift(dsm, old, {"new": look(100.5 + far)}) for far in (0.3, 1.1, 9.0)}
    assert [found["bands"]["height"]["word"] for found in words.values()] == ["none", "small", "large"]
    assert words[9.0]["word"] == words[9.0]["embedding"]["word"] == "large"
    assert words[0.3]["embedding"]["farthest"] == "new"
    assert sensor_drift(dsm, {}, {"new": look(1)})["because"] == "the archive had no tile of this sensor"


@pytest.fixture
def schedule(tmp_path: Path) -> Schedule:
    return read_schedule(written(tmp_path, {**GIVEN, "folder": str(tmp_path / "retraining")}))


def test_scenes_are_new_until_they_led_to_the_champion(schedule: Schedule, tmp_path: Path) -> None:
    """Round 1 promoted, 2 not better, 3 worse, 4 about to begin; then 1 is rolled back."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("")
    registry, rounds = Registry(str(tmp_path / "registry")), Rounds(schedule)
    registry.register(str(tmp_path / "model"), {})
    registry.promote(0, None, "the first")
    for names, ended in (
        (["a", "b"], {"outcome": "promoted", "is_suspect": False}),
        (["c"], {"outcome": "declined", "is_suspect": False}),
        (["d", "e"], {"outcome": "declined", "is_suspect": True}),
    ):
        rounds.begin({name: {} for name in names}, 0).finish("decide", ended)
    registry.register(str(tmp_path / "model"), {"round": 1, "started_from": 0})
    registry.promote(1, 0, "better")
    assert rounds.unfinished() is None
    now = rounds.begin({"e": {"e.tif": "replaced"}, "f": {}}, 1)
    earlier = tuple(rounds.all()[:-1])

    def context(champion: int) -> Context:
        return Context(schedule, registry, registry.version(champion), earlier, now)

    assert context(1).scenes() == (["c", "e", "f"], ["d"])
    registry.roll_back("clouds")
    assert context(0).scenes() == (["c", "e", "f"], ["a", "b", "d"])
    assert now.number == 4
    changed = schedule.model_copy(update={"replay": 0.1})
    with pytest.raises(InputError, match=r"round 4 was begun with replay = 0.5, the schedule now says 0.1; let it end"):
        Rounds(changed).unfinished()


def test_scenes_are_new_when_unknown_or_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import jobs.retraining.find as find

    stamps = {"a.tif": "1", "b.tif": "2", "c.tif": "9", "d.tif": "4"}
    scenes = [SimpleNamespace(id=name, hrefs=[f"{name}.tif"]) for name in "abcd"]
    records = {"a": {"files": {"a.tif": "1"}}, "c": {"files": {"c.tif": "3"}}}
    monkeypatch.setattr(find, "read_scenes", lambda url: (scenes, {}))
    monkeypatch.setattr(find, "open_archive", lambda url: SimpleNamespace(scene_records=lambda: records))
    monkeypatch.setattr(find, "stamps_of", lambda given, rasters, records: stamps)
    earlier = SimpleNamespace(scenes={"b": {"b.tif": "2"}})
    assert new_scenes("", "", [earlier]) == {"c": {"c.tif": "9"}, "d": {"d.tif": "4"}}  # type: ignore[list-item]
