"""What a run is told: numbers of workers, and which of its checkpoints stay."""

from pathlib import Path

import pytest

from cluster.job import TrainConfig
from cluster.kept import Kept
from cluster.run import Run
from pipeline import storage
from pipeline.errors import InputError


@pytest.mark.parametrize(("workers", "expected"), [("0", (0, 0)), ("3", (3, 3)), ("2:4", (2, 4)), ("1:1", (1, 1))])
def test_workers_are_a_number_or_a_range(workers: str, expected: tuple[int, int]) -> None:
    config = TrainConfig(workers=workers, lanes=12)
    assert (config.fewest, config.most) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": "two"}, "workers is 'two', expected a number, or least:most such as 2:8"),
        ({"workers": "4:2"}, "workers is '4:2', expected the smaller number first, at least 1"),
        ({"workers": "0:2"}, "workers is '0:2', expected the smaller number first, at least 1"),
        ({"workers": "2:4", "lanes": 4}, "4 lanes cannot be shared evenly by 3 workers; make lanes a multiple of 12"),
        ({"keep_every": 5, "checkpoint_every": 10}, "keep_every is 5, expected a multiple of checkpoint_every, 10"),
        ({"keep_last": 0}, "keep_last is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_is_said(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)


def keep(run: Run, losses: list[float], first: int = 1, **settings: object) -> Kept:
    """See two steps with each of `losses`, then a checkpoint, of step 10 times its number."""
    kept = Kept(run, **settings)  # type: ignore[arg-type]
    for number, loss in enumerate(losses, first):
        kept.see(loss)
        kept.see(loss + 2)
        with storage.staged_folder(run.path("checkpoint")) as folder:
            (folder / "state").mkdir()
            (folder / "state" / "rank").write_text(str(10 * number))
            kept.add(str(folder), 10 * number)
        kept.tidy(0)
    return kept


def test_every_so_many_and_the_best_stay(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    keep(run, [5.0, 3.0, 4.0, 3.5], every=20, keeps_best=True)
    assert storage.names(run.path("kept")) == ["00000020", "00000040"]
    listed = storage.read_json(run.path("kept.json"))["checkpoints"]
    assert [(one["step"], one["loss"], one["is_due"], one["is_best"]) for one in listed] == [
        (20, 4.0, True, True),
        (40, 4.5, True, False),
    ]
    assert storage.read_bytes(run.path("kept", "00000020", "state", "rank")) == b"20"
    # It goes on: a better one that is not due replaces none that is.
    keep(run, [1.0, 0.5], first=5, every=20, keeps_best=True)
    assert storage.names(run.path("kept")) == ["00000020", "00000040", "00000060"]
    keep(run, [0.1], first=7, every=20, keeps_best=True)
    assert storage.names(run.path("kept")) == ["00000020", "00000040", "00000060", "00000070"]
    assert [one["step"] for one in storage.read_json(run.path("kept.json"))["checkpoints"] if one["is_best"]] == [70]


def test_nothing_stays_unasked(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    keep(run, [5.0, 3.0], every=0, keeps_best=False)
    assert not storage.exists(run.path("kept.json"))
    assert not storage.exists(run.path("kept"))
