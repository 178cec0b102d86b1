"""Splits of ready-made chips: by names alone, never empty, groups together."""

from itertools import pairwise

import pytest

from pipeline.splits import hold_out, split_places

PLACES = [f"place {n}" for n in range(400)]


def test_adding_places_moves_none_to_another_split() -> None:
    splits = split_places(PLACES)
    assert splits == split_places(PLACES[::-1])
    counts = {name: list(splits.values()).count(name) for name in ("train", "val", "test")}
    assert counts == pytest.approx({"train": 240, "val": 60, "test": 100}, abs=25)
    for few, more in pairwise((60, 100, 200, 400)):
        assert split_places(PLACES[:few]).items() <= split_places(PLACES[:more]).items()


@pytest.mark.parametrize("number", range(3, 20))
def test_no_split_of_a_small_folder_is_empty(number: int) -> None:
    for first in range(0, 300, 20):
        splits = split_places(PLACES[first : first + number])
        assert set(splits.values()) == {"train", "val", "test"}
    assert len(set(split_places(PLACES[:2]).values())) <= 2


def test_groups_stay_together() -> None:
    splits = split_places(PLACES, lambda place: place[-1])
    assert all(len({splits[p] for p in PLACES if p.endswith(str(digit))}) == 1 for digit in range(10))


def test_held_out_groups_are_some_of_train_and_never_all() -> None:
    stated = {place: "test" if place.endswith("0") else "train" for place in PLACES}
    splits = hold_out(stated)
    assert {p for p, split in splits.items() if split == "test"} == {p for p in PLACES if p.endswith("0")}
    assert list(splits.values()).count("val") == pytest.approx(0.2 * 360, abs=25)
    for number in range(2, 12):
        for first in range(0, 200, 12):
            few = hold_out(dict.fromkeys(PLACES[first : first + number], "train"))
            assert set(few.values()) == {"train", "val"}
    assert hold_out({"only": "train"}) == {"only": "train"}
