"""What is drawn: shares of the labels, and resamples for intervals."""

import numpy as np
import pytest

from jobs.evaluation.fractions import check_fractions, draw
from jobs.evaluation.interval import draws, gain, intervals, units_of
from jobs.evaluation.metrics import Classified
from pipeline.errors import InputError


def test_shares_are_drawn_once_each_class_by_class_and_nested() -> None:
    strata = np.repeat([0, 1, 2], (1000, 300, 4))
    for seed in range(3):
        smaller = np.array([], int)
        for fraction, expected in ((0.01, (10, 3, 1)), (0.1, (100, 30, 1)), (1.0, (1000, 300, 4))):
            chosen = draw(strata, fraction, seed)
            assert len(np.unique(chosen)) == len(chosen), "a label is drawn twice"
            assert np.bincount(strata[chosen]).tolist() == list(expected)
            assert np.isin(smaller, chosen).all()
            smaller = chosen
    assert not np.array_equal(draw(strata, 0.1, 0), draw(strata, 0.1, 1))


@pytest.mark.parametrize("fractions", [(), (0.0,), (1.5,), (0.1, -1.0)])
def test_impossible_shares_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected at least one, each above 0 and at most 1"):
        check_fractions(fractions)


def outcome(is_right: np.ndarray, place: np.ndarray) -> Classified:
    return Classified(place, np.zeros(len(is_right)), (~is_right).astype(float), ("a", "b"))


def test_interval_of_a_share_is_that_of_the_binomial() -> None:
    is_right = np.arange(400) < 300
    low, high = intervals(outcome(is_right, np.arange(400).astype(str)))["accuracy"]
    expected = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - expected, abs=0.012)
    assert high == pytest.approx(0.75 + expected, abs=0.012)


def test_samples_of_a_place_are_drawn_together() -> None:
    """Of 20 places half are all right: by samples the interval would be +-0.05, by places it is +-0.22."""
    place = np.repeat(np.arange(20), 20)
    found = outcome(place % 2 == 0, place.astype(str))
    assert units_of(found)[0] == "places"
    assert all((np.bincount(place[chosen], minlength=20) % 20 == 0).all() for chosen in draws(found, 0)[:20])
    low, high = intervals(found)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 20) ** 0.5, rel=0.2)


def test_few_places_are_not_drawn() -> None:
    assert units_of(outcome(np.ones(30, bool), np.repeat(["x", "y"], 15)))[0] == "samples"


def test_gain_is_of_the_same_samples() -> None:
    """One model is right wherever the other is and on 12 of 300 samples more: each alone is uncertain, the gain is not."""
    place = np.arange(300).astype(str)
    other = np.random.default_rng(0).random(300) < 0.5
    own = other.copy()
    own[np.flatnonzero(~other)[:12]] = True
    mean, low, high = gain([outcome(own, place)] * 2, [outcome(other, place)] * 2, "accuracy")
    assert mean == pytest.approx(0.04)
    assert 0.015 < low < 0.03
    assert 0.05 < high < 0.07
    alone = intervals(outcome(own, place))["accuracy"]
    assert alone[1] - alone[0] > 0.08
