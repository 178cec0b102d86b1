"""The training loop of decoders and of fine-tuning, and what the linear probe chooses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jobs.evaluation.contenders import Contender
from jobs.evaluation.features import FeatureStore
from jobs.evaluation.protocols import _fitting, linear
from jobs.evaluation.protocols._fitting import View
from jobs.evaluation.protocols._probe import Part
from jobs.evaluation.question import Question, TrainingConfig
from jobs.evaluation.task import label_task
from pipeline.archive import Archive
from pipeline.augment import dihedral
from tests.jobs.evaluation.conftest import SENSOR

NOBODY = Contender("nobody", frozenset(), (), "")


def question_of(archive: Archive, label: str, folder: Path, **settings: Any) -> Question:
    task = label_task(archive, label)
    samples = task.samples(frozenset([SENSOR]))[0]
    return Question(task, samples, NOBODY, samples.part("train"), 0, FeatureStore(str(folder)), TrainingConfig(**settings))


def test_maps_turn_as_tiles_do() -> None:
    maps, symmetries = torch.arange(8 * 2 * 3 * 3).view(8, 2, 3, 3), np.arange(8)
    wanted = torch.stack([torch.from_numpy(dihedral(m.numpy(), n).copy()) for m, n in zip(maps, symmetries)])
    assert torch.equal(_fitting.turned(maps, View(symmetries)), wanted)
    last = _fitting.turned(maps.permute(0, 2, 3, 1), View(symmetries), (1, 2))
    assert torch.equal(last.permute(0, 3, 1, 2), wanted)
    assert _fitting.turned(maps, _fitting.WHOLE) is maps


class Level(nn.Module):
    """One logit for all pixels; `fit` sees it rise step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


def test_what_was_best_on_val_is_kept(told: Archive, tmp_path: Path) -> None:
    """A model that answers val well half-way only, whatever its loss says, is left as it was then."""
    asked, steps = question_of(told, "bright", tmp_path, batch_size=4), 16
    model, labels = Level(), torch.from_numpy(asked.samples.labels)
    taken, value_at = [0], {}

    def outputs(chosen: np.ndarray, is_test: bool, view: View) -> tuple[Tensor, Tensor]:
        assert not is_test
        if model.training:
            taken[0] += 1
            return model.value * torch.ones(len(chosen), 1), torch.zeros(())
        value_at[taken[0]] = model.value.item()
        is_right = taken[0] == steps // 2
        return labels[chosen][:, None].float() * (1 if is_right else -1), torch.zeros(())

    found = _fitting.fit(asked, model, outputs, [{"params": list(model.parameters()), "lr": 0.1}], steps, 0.0)
    assert sorted(value_at) == [2, 4, 6, 8, 10, 12, 14, 16], "eight looks"
    assert found == steps // 2
    assert model.value.item() == value_at[8] != value_at[16]
    assert not model.training


def test_labels_turn_with_their_samples_and_sensors_are_hidden(told: Archive, tmp_path: Path) -> None:
    """A model that is shown the truth turned as the view says has no loss to learn from; one of two sensors is at times alone."""
    asked = question_of(told, "flood", tmp_path, batch_size=8)
    truth = asked.label_task.targets(asked.samples, np.arange(len(asked.samples)))
    classes = torch.from_numpy(truth.classes)
    model, views = Level(), []

    def outputs(chosen: np.ndarray, is_test: bool, view: View) -> tuple[Tensor, Tensor]:
        if model.training:
            views.append(view)
        shown = _fitting.turned(classes[chosen], view).float()
        return torch.stack([1 - shown, shown], 1) * (200 + model.value), torch.zeros(())

    _fitting.fit(asked, model, outputs, [{"params": list(model.parameters()), "lr": 0.1}], 8, 0.0)
    assert model.value.item() == 0
    assert len({int(number) for view in views for number in view.symmetries}) > 4  # type: ignore[union-attr]
    assert all(view.sensors is None for view in views), "a single sensor is never hidden"
    rng = np.random.default_rng(0)
    two = _Two(asked)
    drawn = [_fitting._drawn(two, 4, rng).sensors for _ in range(200)]  # type: ignore[arg-type]
    assert {sensors for sensors in drawn if sensors} == {("a",), ("b",)}
    assert 25 <= sum(sensors is not None for sensors in drawn) <= 80


class _Two:
    """A question about two sensors."""

    def __init__(self, asked: Question) -> None:
        self.training = asked.training
        self.samples = type("Samples", (), {"sensors": ("a", "b")})()


@pytest.mark.parametrize("is_whitened", [True, False])
def test_the_probe_chooses_whether_to_whiten(is_whitened: bool) -> None:
    """Whitened where classes differ along a direction of small variance; not where they do along the largest, beside much noise."""
    rng = np.random.default_rng(0)

    def part(count: int) -> Part:
        labels = rng.integers(2, size=count).astype(float)
        if is_whitened:
            common, own = rng.normal(size=(count, 1)), 0.02 * (labels[:, None] - 0.5) * np.sign(np.arange(40) % 2 - 0.5)
            vectors = common + own + 0.005 * rng.normal(size=(count, 40))
        else:
            vectors = rng.normal(size=(count, 40)) + 0.7 * (labels[:, None] - 0.5)
        return Part(np.arange(count), vectors, labels)

    train, val, test = part(60), part(200), part(400)
    settings, predict = linear.probe("binary", train, val, lambda found: float(((found > 0.5) == val.labels).mean()))
    assert settings["whitened"] == is_whitened
    assert ((predict(test.vectors) > 0.5) == test.labels).mean() > 0.9


@pytest.mark.parametrize("features", [20, 300])
def test_the_probe_of_many_features_is_that_of_all_of_them(features: int) -> None:
    """It is fitted along the axes of the training samples, of which there are fewer; ridge regression says the same without."""
    rng = np.random.default_rng(1)
    train, val, test = (Part(np.arange(n), rng.normal(size=(n, features)), rng.normal(size=n)) for n in (60, 40, 50))
    wanted = linear.fit("fraction", train.vectors, train.labels, 0.1)
    settings, predict = linear.probe("fraction", train, val, lambda found: -float(abs(found - wanted(val.vectors)).max()))
    assert settings == {"strength": 0.1, "whitened": False}
    assert np.allclose(predict(test.vectors), wanted(test.vectors), atol=1e-9)


def test_features_that_say_nothing_are_no_error() -> None:
    part = Part(np.arange(6), np.zeros((6, 3)), np.array([0.0, 1, 0, 1, 1, 1]))
    _, predict = linear.probe("class", part, part, lambda found: float((found == part.labels).mean()))
    assert predict(part.vectors).tolist() == [1.0] * 6


def test_where_val_has_no_score_the_last_look_stays(told: Archive, tmp_path: Path) -> None:
    asked = question_of(told, "bright", tmp_path, batch_size=4)
    labels = np.where(asked.samples.split == "val", 0, asked.samples.labels)  # average precision of no 1 is not defined
    asked = replace(asked, samples=replace(asked.samples, labels=labels))
    model = Level()

    def outputs(chosen: np.ndarray, is_test: bool, view: View) -> tuple[Tensor, Tensor]:
        return model.value * torch.ones(len(chosen), 1), torch.zeros(())

    before = model.value.item()
    assert np.isnan(asked.task.outcome(asked.samples, asked.val, np.zeros(len(asked.val))).scores()["average precision"])
    assert _fitting.fit(asked, model, outputs, [{"params": list(model.parameters()), "lr": 0.1}], 4, 0.0) == 4
    assert model.value.item() != before
