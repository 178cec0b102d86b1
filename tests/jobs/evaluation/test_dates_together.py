"""Dates of a place are looked at together by an encoder that has learned to, and by no other; what is not known is at the mean."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.batches import sensor_specs
from cluster.embedding import ImageStatistics
from cluster.run import Run
from jobs.evaluation.contenders import RANDOM, Contender, contenders
from jobs.evaluation.disturbances import Removed
from jobs.evaluation.features import FeatureStore, where_known
from jobs.evaluation.protocols import _probe
from jobs.evaluation.question import Question, TrainingConfig
from jobs.evaluation.task import label_task
from jobs.evaluation.tiles import TileReader
from jobs.recipes.loom import loom, loom_series
from jobs.sweeping.quiz import quizzes
from models.batch import Batch, Tiles
from models.encoder import Encoder
from models.objectives.loom import loom_encoder
from models.vit import VitConfig
from pipeline.archive import Archive
from pipeline.augment import SensorArrays
from pipeline.sensors import load_sensor
from pipeline.views import DateStack
from tests.jobs.evaluation.conftest import SENSOR


def run_of(folder: Path, archive: Archive, num_dates: int) -> Run:
    """Return a run of an encoder whose dates attend to one another, trained on `num_dates`."""
    config = loom_encoder(VitConfig(embed_dim=16, depth=2, num_heads=2), 40.0, sensor_specs(archive))
    Encoder(config, torch.Generator().manual_seed(0)).save(folder / "model")
    recipe = loom_series() if num_dates > 1 else loom()
    recipe = replace(recipe, train=replace(recipe.train, view=DateStack(num_dates) if num_dates > 1 else recipe.train.view))
    content = {"job": "pretrain", "inputs": {"recipe": "loom"}, "config": asdict(recipe)}
    (folder / "config.json").write_text(json.dumps(content))
    return Run(str(folder), "pretrain")


def question_of(archive: Archive, contender: Contender, folder: Path, perturbation: Removed | None = None) -> Question:
    """Return the question of floods, of two dates of each site, with its features made."""
    task, store = label_task(archive, "flood"), FeatureStore(str(folder))
    samples = task.samples(frozenset([SENSOR]))[0]
    asked = Question(task, samples, contender, samples.part("train"), 0, store, TrainingConfig(), perturbation)
    for has_maps in (False, True) if "maps" in contender.roles else (False,):
        for is_test in (False, True) if perturbation else (False,):
            key = asked.key(has_maps, is_test)
            for shard in np.unique(samples.tiles.shard):
                stacks = key.stacks(samples.tiles.rows[SENSOR][samples.tiles.shard == shard])
                store.make(key, SENSOR, str(shard), stacks)
                assert store.has(key, SENSOR, str(shard), stacks.shape[1])
    return asked


def of_date(tiles: Tiles, date: int) -> Tiles:
    names = ("pixels", "is_valid", "is_present", "time_days")
    return replace(tiles, **{name: getattr(tiles, name)[:, date : date + 1] for name in names})


@pytest.mark.parametrize(("num_dates", "is_together"), [(1, False), (2, True), (3, True)])
def test_dates_are_seen_as_in_training(told: Archive, tmp_path: Path, num_dates: int, is_together: bool) -> None:
    trained, _, random, _ = contenders([run_of(tmp_path, told, num_dates)], seeds=1)
    assert random.title == RANDOM
    assert trained.num_dates == random.num_dates == num_dates
    asked = question_of(told, trained, tmp_path / "run")
    chosen, encoder = asked.samples.part("test")[[4, 1, 7]], trained.encoder(0)
    batch = TileReader(told, asked.samples).batch(chosen)
    tiles = batch.tiles[SENSOR]
    together = encoder.encode(batch)[SENSOR]
    apart = [encoder.encode(Batch({SENSOR: of_date(tiles, date)}, batch.lonlat))[SENSOR].pooled[:, 0] for date in (0, 1)]
    wanted = together.pooled if is_together else torch.stack(apart, 1)
    assert not torch.allclose(together.pooled, torch.stack(apart, 1), atol=1e-3), "these dates make no difference to one another"
    found = asked.features.pooled(asked.key(False, False), asked.samples, chosen)[SENSOR]
    assert np.allclose(found, wanted.numpy(), atol=1e-5)
    last = asked.maps(chosen)[SENSOR][-1]
    assert last.shape == tuple(together.grid.shape)
    if is_together:
        seen = torch.nn.functional.layer_norm(together.grid, together.grid.shape[-1:])
        assert np.allclose(last, seen.numpy(), atol=5e-3)


def test_each_model_has_a_random_one_that_sees_as_many_dates(told: Archive, tmp_path: Path) -> None:
    found = contenders([run_of(tmp_path / str(dates), told, dates) for dates in (1, 2)], seeds=1)
    assert {contender.title: contender.num_dates for contender in found if "maps" in contender.roles} == {
        "pretrained": 1,
        "pretrained loom": 2,
        RANDOM: 1,
        f"{RANDOM} (pretrained loom)": 2,
    }


@pytest.mark.parametrize("num_dates", [1, 2])
def test_a_sweep_asks_as_evaluate_does(told: Archive, tmp_path: Path, num_dates: int) -> None:
    trained, *_ = contenders([run_of(tmp_path, told, num_dates)], seeds=1)
    asked = question_of(told, trained, tmp_path / "run")
    (quiz,) = quizzes(told, ["flood"], 1000)
    seen: list[np.ndarray] = []

    class Maker:
        def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
            seen.append(trained.maker(0).features(arrays, lonlat_deg))
            return seen[-1]

    answers = quiz.ask(Maker(), num_dates)
    assert [found.shape[1] for found in seen] == [num_dates] * 3
    test = seen[-1].reshape(-1, 2, seen[-1].shape[-1])
    wanted = asked.features.pooled(asked.key(False, False), asked.samples, quiz.of_split["test"])[SENSOR]
    assert np.allclose(test, wanted, atol=1e-5)
    assert 0 <= answers.score <= 1


class Marked:
    """Image statistics, `mark` for a tile without a valid pixel."""

    def __init__(self, mark: float) -> None:
        self.mark = mark

    def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
        is_seen = (arrays.is_valid & arrays.is_present[..., None, None]).any((2, 3))
        return np.where(is_seen[..., None], ImageStatistics().features(arrays, lonlat_deg), self.mark)


def test_a_sweep_does_not_look_at_what_an_encoder_makes_of_nothing(told: Archive) -> None:
    (quiz,) = quizzes(told, ["flood"], 1000)
    quiz.__dict__["_reader"] = TileReader(told, quiz.samples, Removed(0.5))
    first, second = (quiz.ask(Marked(mark)) for mark in (0.0, 1e9))
    assert np.array_equal(first.outcome.predicted, second.outcome.predicted)  # type: ignore[attr-defined]


def test_an_encoder_that_breaks_is_not_taken_for_one_that_sees_nothing() -> None:
    is_valid = np.broadcast_to(np.array([True, False])[:, None, None, None], (2, 1, 4, 4))
    pixels = np.zeros((2, 1, 2, 4, 4), np.float32)
    arrays = SensorArrays(load_sensor(SENSOR), pixels, is_valid, np.ones((2, 1), bool), np.zeros((2, 1)))
    found = where_known(np.full((2, 1, 3), np.nan), arrays)
    assert np.isposinf(found[0]).all()
    assert np.isnan(found[1]).all()
    with pytest.raises(ValueError, match="infinity"):
        _probe.standardised(found[:, 0])
    assert np.array_equal(_probe.standardised(np.array([[1.0], [np.nan], [3.0]]))[0].ravel(), [-1, 0, 1])


def test_what_is_absent_is_not_known_and_at_the_mean(told: Archive, tmp_path: Path) -> None:
    trained, statistics, *_ = contenders([run_of(tmp_path, told, 2)], seeds=1)
    for contender in (trained, statistics):
        asked = question_of(told, contender, tmp_path / "run", Removed(0.5))
        vectors = asked.vectors(asked.test, is_test=True)
        assert np.isnan(vectors).any(1).mean() == pytest.approx(0.5, abs=0.3)
        assert not np.isnan(asked.vectors(asked.test)).any()
        *_, test = _probe.parts(asked)
        assert np.array_equal(test.vectors == 0, np.isnan(vectors))
