"""Metrics against numbers worked by hand and against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    BinaryAveragePrecision,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelAveragePrecision,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from jobs.evaluation.metrics import Changed, Classified, MultiRanked, Ranked, Regressed, Segmented, counts_of, joined

NAMES = ("a", "b", "c")
PRECISE = {"abs": 1e-6}


def places(count: int) -> np.ndarray:
    return np.array([f"place {n}" for n in range(count)])


def test_segmentation_by_hand() -> None:
    """Nine pixels of three classes, one of them unlabelled."""
    truth = np.array([[[0, 0, 0], [1, 1, 1], [2, 2, 2]]], np.uint8)
    predicted = np.array([[[0, 0, 1], [1, 1, 1], [2, 0, 0]]], np.uint8)
    is_labelled = np.ones_like(truth, bool)
    is_labelled[0, 2, 2] = False
    counts = counts_of(truth, predicted, is_labelled, 3)
    assert counts.tolist() == [[[2, 1, 0], [0, 3, 0], [1, 0, 1]]]
    scores = Segmented(places(1), counts, NAMES).scores()
    assert scores["IoU a"] == pytest.approx(2 / 4)
    assert scores["IoU b"] == pytest.approx(3 / 4)
    assert scores["IoU c"] == pytest.approx(1 / 2)
    assert scores["mIoU"] == pytest.approx((2 / 4 + 3 / 4 + 1 / 2) / 3)
    assert scores["mF1"] == pytest.approx((4 / 6 + 6 / 7 + 2 / 3) / 3)
    assert scores["overall accuracy"] == pytest.approx(6 / 8)


def test_class_that_is_nowhere_is_left_out_of_means() -> None:
    counts = np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]])
    scores = Segmented(places(1), counts, NAMES).scores()
    assert np.isnan(scores["IoU c"])
    assert scores["mIoU"] == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_segmentation_as_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(3, size=(2, 20, 16, 16), dtype=np.uint8)
    outcome = Segmented(places(20), counts_of(truth, predicted, np.ones_like(truth, bool), 3), NAMES)
    pair = torch.from_numpy(predicted).long(), torch.from_numpy(truth).long()
    scores = outcome.scores()
    assert scores["mIoU"] == pytest.approx(float(MulticlassJaccardIndex(3)(*pair)), **PRECISE)
    assert scores["mF1"] == pytest.approx(float(MulticlassF1Score(3)(*pair)), **PRECISE)
    assert scores["overall accuracy"] == pytest.approx(float(MulticlassAccuracy(3, average="micro")(*pair)), **PRECISE)


def test_batches_of_any_size_give_the_score_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(3, size=(2, 11, 8, 8), dtype=np.uint8)
    truth[:3] = 0
    parts = [
        Segmented(places(11)[part], counts_of(truth[part], predicted[part], np.ones_like(truth[part], bool), 3), NAMES)
        for part in (slice(0, 3), slice(3, 4), slice(4, 11))
    ]
    whole = Segmented(places(11), counts_of(truth, predicted, np.ones_like(truth, bool), 3), NAMES)
    assert joined(parts).scores() == whole.scores()
    assert np.mean([part.scores()["mIoU"] for part in parts]) != pytest.approx(whole.scores()["mIoU"], abs=1e-3)


def test_change_pooled_and_by_place() -> None:
    """Two places: F1 of 2/3 (one of two found, nothing wrong) and of 4/7; pooled from 3 found, 3 missed, 1 wrong."""
    counts = np.array([[[10, 0], [1, 1]], [[5, 1], [2, 2]], [[9, 0], [0, 0]]])
    place = np.array(["x", "y", "z"])
    scores = Changed(place, counts, ("same", "changed")).scores()
    assert scores["F1"] == pytest.approx(2 * 3 / (2 * 3 + 3 + 1))
    assert scores["F1, mean of places"] == pytest.approx((2 / 3 + 4 / 7) / 2), "a place without change has no F1"
    assert scores["precision"] == pytest.approx(3 / 4)
    assert scores["recall"] == pytest.approx(3 / 6)
    assert scores["IoU"] == pytest.approx(3 / 7)
    two_samples_of_x = Changed(np.array(["x", "x", "z"]), counts, ("same", "changed")).scores()
    assert two_samples_of_x["F1, mean of places"] == pytest.approx(6 / 10)


def test_change_as_torchmetrics() -> None:
    rng = np.random.default_rng(2)
    truth, predicted = rng.integers(2, size=(2, 5, 8, 8), dtype=np.uint8)
    scores = Changed(places(5), counts_of(truth, predicted, np.ones_like(truth, bool), 2), ("same", "changed")).scores()
    assert scores["F1"] == pytest.approx(float(BinaryF1Score()(torch.from_numpy(predicted), torch.from_numpy(truth))), **PRECISE)


def test_classes_by_hand_and_as_torchmetrics() -> None:
    by_hand = Classified(places(4), np.array([0.0, 0, 1, 2]), np.array([0.0, 1, 1, 1]), NAMES).scores()
    assert by_hand["accuracy"] == 0.5
    assert by_hand["balanced accuracy"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert by_hand["macro F1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    labels, predicted = np.random.default_rng(3).integers(3, size=(2, 200))
    pair = torch.from_numpy(predicted), torch.from_numpy(labels)
    scores = Classified(places(200), labels.astype(float), predicted.astype(float), NAMES).scores()
    assert scores["macro F1"] == pytest.approx(float(MulticlassF1Score(3)(*pair)), **PRECISE)
    assert scores["balanced accuracy"] == pytest.approx(float(MulticlassAccuracy(3)(*pair)), **PRECISE)


def test_average_precision_by_hand_and_as_torchmetrics() -> None:
    """Ranks of the two positives: first and third; AP = (1/1 + 2/3) / 2."""
    assert Ranked(places(4), np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])).scores() == {
        "average precision": pytest.approx((1 + 2 / 3) / 2)
    }
    rng = np.random.default_rng(4)
    labels, predicted = rng.integers(2, size=300), rng.random(300)
    expected = float(BinaryAveragePrecision()(torch.from_numpy(predicted), torch.from_numpy(labels)))
    assert Ranked(places(300), labels, predicted).scores()["average precision"] == pytest.approx(expected, **PRECISE)
    assert np.isnan(Ranked(places(2), np.zeros(2), np.zeros(2)).scores()["average precision"])


def test_micro_and_macro_map_over_the_whole_split() -> None:
    """Class a: both positives first, AP 1. Class b: its positive last of three, AP 1/3. Pooled: ranks 1, 3 and 6 of 6."""
    labels = np.array([[1, 0], [1, 0], [0, 1]], bool)
    predicted = np.array([[0.9, 0.8], [0.7, 0.6], [0.5, 0.1]])
    scores = MultiRanked(places(3), labels, predicted, ("a", "b")).scores()
    assert scores["macro mAP"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["micro mAP"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)
    rng = np.random.default_rng(5)
    labels, predicted = rng.random((200, 7)) < 0.3, rng.random((200, 7))
    scores = MultiRanked(places(200), labels, predicted, tuple("abcdefg")).scores()
    pair = torch.from_numpy(predicted), torch.from_numpy(labels).long()
    for average in ("micro", "macro"):
        expected = float(MultilabelAveragePrecision(7, average=average)(*pair))
        assert scores[f"{average} mAP"] == pytest.approx(expected, **PRECISE)


def test_class_without_a_sample_is_left_out_of_macro_map() -> None:
    labels, predicted = np.array([[1, 0], [0, 0]], bool), np.array([[0.9, 0.2], [0.1, 0.4]])
    scores = MultiRanked(places(2), labels, predicted, ("a", "b")).scores()
    assert scores["macro mAP"] == 1.0
    assert np.isnan(scores["AP b"])


def test_regression_by_hand_and_as_torchmetrics() -> None:
    scores = Regressed(places(3), np.array([0.0, 1, 2]), np.array([0.0, 1, 4])).scores()
    assert scores == {"R2": pytest.approx(1 - 4 / 2), "MAE": pytest.approx(2 / 3), "RMSE": pytest.approx((4 / 3) ** 0.5)}
    labels, predicted = np.random.default_rng(6).random((2, 100))
    found, pair = Regressed(places(100), labels, predicted).scores(), (torch.from_numpy(predicted), torch.from_numpy(labels))
    assert found["R2"] == pytest.approx(float(R2Score()(*pair)), **PRECISE)
    assert found["MAE"] == pytest.approx(float(MeanAbsoluteError()(*pair)), **PRECISE)
    assert found["RMSE"] == pytest.approx(float(MeanSquaredError(squared=False)(*pair)), **PRECISE)
