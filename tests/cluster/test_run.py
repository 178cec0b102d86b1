"""A run's folder knows its own earlier self, wherever it is executed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier

import pytest

from cluster.run import Run
from pipeline.errors import InputError


@dataclass(frozen=True)
class Settings:
    workers: int = 2
    sinks: tuple[str, ...] = ()
    profile: int = 0
    threads_per_worker: int = 0
    num_steps: int = 10


def test_a_run_goes_on_elsewhere_but_not_as_another(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"), "pretrain")
    assert run.begin(Settings(), {"archive": "a"}) is None
    assert run.begin(replace(Settings(), workers=1, sinks=("mlflow",), profile=3, threads_per_worker=2), {"archive": "a"}) is None
    with pytest.raises(InputError, match=r"holds a run with config.num_steps = 10, not 20; use a new folder"):
        run.begin(replace(Settings(), num_steps=20), {"archive": "a"})
    run.finish({"steps": 10})
    assert (run.begin(Settings(), {"archive": "a"}) or {})["steps"] == 10


def test_a_run_goes_on_with_a_version_that_has_more_settings(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Optimiser:
        rate: float = 0.1
        betas: tuple[float, ...] = (0.9,)

    @dataclass(frozen=True)
    class Newer(Settings):
        optimiser: Optimiser = field(default_factory=Optimiser)
        shape: tuple[int, ...] = (1, 2)

    run = Run(str(tmp_path / "run"), "pretrain")
    run.begin(Settings(), {})
    with pytest.raises(InputError, match=r"config.shape = \[1, 2\], not \[3\]"):
        run.begin(Newer(shape=(3,)), {})
    with pytest.raises(InputError, match=r"config.optimiser.rate = 0.1, not 0.2"):
        run.begin(Newer(optimiser=Optimiser(0.2)), {})
    assert run.begin(Newer(), {}) is None


def test_where_nothing_can_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run' cannot be written to \(Not a directory\); give a folder that can"):
        Run(str(tmp_path / "file" / "run"), "pretrain").begin(Settings(), {})


def test_ranks_that_tell_at_once_do_not_overwrite_one_another(bucket: str) -> None:
    """On S3 appending is reading and writing anew: of two at once one would be lost."""
    url = f"{bucket}/told"
    ranks = [Run(url, "pretrain", rank) for rank in range(3)]
    is_time = Barrier(3, timeout=60)

    def tell(run: Run) -> None:
        for number in range(5):
            is_time.wait()
            run.event("hung", rank=ranks.index(run), number=number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tell, ranks))
    found = Run(url, "pretrain").events()
    assert [event["number"] for event in found] == [number for number in range(5) for _ in ranks], "in the order of time"
    assert all(sorted(event["rank"] for event in found[n : n + 3]) == [0, 1, 2] for n in range(0, 15, 3))
