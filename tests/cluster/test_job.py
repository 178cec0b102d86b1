"""What a run is told: numbers of workers, and which of its checkpoints stay."""

import threading
from pathlib import Path

import pytest

from cluster.checkpoints import Kept, checkpoint_url
from cluster.job import TrainConfig
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


def store(run: Run, step: int) -> Path:
    """Make a checkpoint of the run, whole."""
    with storage.staged_folder(run.path("checkpoints", "bare", f"{step:08d}")) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "rank").write_text(str(step))
    return Path(run.path("checkpoints", "bare", f"{step:08d}"))


def keep(run: Run, losses: list[float], first: int = 1, **settings: object) -> Kept:
    """See two steps with each of `losses`, then a checkpoint, of step 10 times its number; the run's own goes at once."""
    kept = Kept(run, **settings)  # type: ignore[arg-type]
    for number, loss in enumerate(losses, first):
        kept.see(loss)
        kept.see(loss + 2)
        kept.add(10 * number, kept.take_loss())
        folder = store(run, 10 * number)
        kept.settle()
        storage.remove(str(folder))
    return kept


def listed(run: Run) -> list[tuple[int, float | None, bool, bool]]:
    return [
        (one["step"], one["loss"], one["is_due"], one["is_best"]) for one in storage.read_json(run.path("kept.json"))["checkpoints"]
    ]


def test_every_so_many_and_the_best_stay(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    keep(run, [5.0, 3.0, 4.0, 3.5], every=20, keeps_best=True)
    assert storage.names(run.path("kept")) == ["00000020", "00000040"]
    assert listed(run) == [(20, 4.0, True, True), (40, 4.5, True, False)]
    assert storage.read_bytes(run.path("kept", "00000020", "state", "rank")) == b"20"
    # It goes on: a better one that is not due replaces none that is.
    keep(run, [1.0, 0.5], first=5, every=20, keeps_best=True)
    assert storage.names(run.path("kept")) == ["00000020", "00000040", "00000060"]
    keep(run, [0.1], first=7, every=20, keeps_best=True)
    assert storage.names(run.path("kept")) == ["00000020", "00000040", "00000060", "00000070"]
    assert [step for step, _, _, is_best in listed(run) if is_best] == [70]


def test_nothing_stays_unasked(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    keep(run, [5.0, 3.0], every=0, keeps_best=False)
    assert not storage.exists(run.path("kept.json"))
    assert not storage.exists(run.path("kept"))


def test_a_checkpoint_that_is_not_whole_is_waited_for(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    kept = Kept(run, 10, False)
    kept.add(10, None)
    later = threading.Timer(0.5, store, (run, 10))
    later.start()
    kept.settle()
    later.join()
    assert checkpoint_url(run, 10) == run.path("kept", "00000010")
    never = Kept(run, 10, False, timeout_s=0.3)
    never.add(20, None)
    with pytest.raises(TimeoutError, match=r"the checkpoint of step 20 was not whole after 0\.3 s"):
        never.settle()


def test_what_was_half_copied_is_no_checkpoint_and_done_again(tmp_path: Path) -> None:
    """Killed in between, a run goes on from the checkpoint that was to stay."""
    run = Run(str(tmp_path / "run"), "pretrain")
    store(run, 20)
    half = tmp_path / "run" / "kept" / "00000020"
    (half / "state").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has kept no checkpoint of step 20 \(has none\)"):
        checkpoint_url(run, 20)
    Kept(run, 10, False, start=20).settle()
    assert (half / "state" / "rank").read_text() == "20"
    assert listed(run) == [(20, None, True, False)]
    storage.remove(run.path("checkpoints"))
    Kept(run, 10, True, start=20).settle()  # there already: the run's own is not wanted
    assert listed(run) == [(20, None, True, False)]


def test_the_best_is_told_by_its_checkpoint_to_whoever_goes_on(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    keep(run, [5.0], every=0, keeps_best=True)
    for step, loss in ((20, 7.0), (30, 2.0)):
        storage.write_json(storage.join(str(store(run, step)), "checkpoint.json"), {"loss": loss})
        Kept(run, 0, True, start=step).settle()
    assert listed(run) == [(30, 2.0, False, True)]


def test_a_copy_outlives_what_it_was_copied_from(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights").write_bytes(bytes(1000))
    for name in ("copy", "copy"):  # replacing what is there
        storage.copy_folder(str(made), str(tmp_path / name))
    assert (tmp_path / "copy" / "weights").stat().st_ino == (made / "weights").stat().st_ino, "nothing is written twice"
    storage.remove(str(made))
    assert (tmp_path / "copy" / "weights").read_bytes() == bytes(1000)
