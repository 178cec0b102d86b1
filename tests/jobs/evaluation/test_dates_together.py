"""Dates of a place are looked at together by an encoder that has learned to, and by no other; what is not known is at the mean."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.batches import sensor_specs
from cluster.run import Run
from jobs.evaluation.contenders import RANDOM, Contender, contenders
from jobs.evaluation.disturbances import Removed
from jobs.evaluation.features import FeatureStore
from jobs.evaluation.protocols import _probe
from jobs.evaluation.question import Question, TrainingConfig
from jobs.evaluation.task import label_task
from jobs.evaluation.tiles import TileReader
from models.batch import Batch, Tiles
from models.encoder import Encoder
from models.objectives.loom import loom_encoder
from models.vit import VitConfig
from pipeline.archive import Archive
from tests.jobs.evaluation.conftest import SENSOR


def run_of(folder: Path, archive: Archive, num_dates: int) -> Run:
    """Return a run of an encoder whose dates attend to one another, trained on `num_dates`."""
    config = loom_encoder(VitConfig(embed_dim=16, depth=2, num_heads=2), 40.0, sensor_specs(archive))
    Encoder(config, torch.Generator().manual_seed(0)).save(folder / "model")
    view = {"num_dates": num_dates} if num_dates > 1 else {}
    content = {"job": "pretrain", "inputs": {"recipe": "loom"}, "config": {"train": {"view": view}}}
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


def test_what_is_absent_is_not_known_and_at_the_mean(told: Archive, tmp_path: Path) -> None:
    trained, statistics, *_ = contenders([run_of(tmp_path, told, 2)], seeds=1)
    for contender in (trained, statistics):
        asked = question_of(told, contender, tmp_path / "run", Removed(0.5))
        vectors = asked.vectors(asked.test, is_test=True)
        assert np.isnan(vectors).any(1).mean() == pytest.approx(0.5, abs=0.3)
        assert not np.isnan(asked.vectors(asked.test)).any()
        *_, test = _probe.parts(asked)
        assert np.array_equal(test.vectors == 0, np.isnan(vectors))
