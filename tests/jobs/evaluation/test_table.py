"""What is said of a table follows the interval of the difference, not its sign."""

import pytest

from jobs.evaluation.table import notes_of


@pytest.mark.parametrize(
    ("bounds", "word"), [((0.01, 0.19), "beats"), ((-0.02, 0.22), "is not told apart from"), ((-0.20, -0.01), "is behind")]
)
def test_a_lead_whose_interval_holds_zero_is_not_called_one(bounds: tuple[float, float], word: str) -> None:
    line = {"task": "t", "archive": "a", "sensors": "s", "fraction": 1.0, "perturbation": "", "metric": "F1", "method": "linear"}
    table = [{**line, "model": "pretrained", "mean": 0.6}, {**line, "model": "image statistics", "mean": 0.5}]
    (note,) = notes_of(table, lambda own, other: (sum(bounds) / 2, *bounds))
    assert f"pretrained {word} image statistics: " in note
