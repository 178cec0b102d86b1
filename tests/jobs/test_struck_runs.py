"""Runs on several nodes that lose a worker, have one hang, lose a node, for good or to get another: they end as if nothing had."""

import itertools
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bench.bench_kills import NOTICE_SECONDS, Nodes, committed, events, lines, reached, running, starts, wait_for

STEPS, EVERY = 160, 20
SETTINGS = ["--batch-size", "8", "--window-shards", "2", "--health-every", "0", "--timeout-s", "30"]
SHORT = ["--num-steps", str(STEPS), "--checkpoint-every", str(EVERY), *SETTINGS]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def nodes(archive: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Beside the session's cluster, which is there before so as not to be taken for this one."""
    monkeypatch.setenv("RAY_TMPDIR", "")  # given back afterwards
    made = Nodes(2)
    yield made
    made.stop()


def losses(run: Path) -> list[float]:
    records = lines(run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(STEPS)), "each step is recorded once"
    return [record["loss"] for record in records]


def test_a_run_survives_kills_and_hangs_and_shrinks(nodes: Nodes, archive: str, tmp_path: Path) -> None:
    whole, struck, rng = tmp_path / "whole", tmp_path / "struck", np.random.default_rng(0)
    with running(nodes, ["mae_tiny", archive, str(whole), *SHORT, "--workers", "2"]):
        pass
    with running(nodes, ["mae_tiny", archive, str(struck), *SHORT, "--workers", "1:2"]) as process:

        def is_further(than: int, workers: int) -> bool:
            """Whether it was started again and has a further checkpoint since, with so many workers."""
            begun = starts(struck)
            further = len(begun) > than and committed(struck) > begun[-1]["start"]
            return further and begun[-1]["workers"] == workers == len(nodes.workers())

        assert wait_for(lambda: is_further(0, 2), process)
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            before = len(starts(struck))
            nodes.strike_worker(rng, blow)
            assert wait_for(lambda before=before: is_further(before, 2), process)
        nodes.kill(nodes.choose(rng))
    begun = starts(struck)
    assert [one["workers"] for one in begun] == [*[2] * (len(begun) - 1), 1]
    assert len({one["start"] for one in begun}) >= 4, "it goes on from a later checkpoint after each blow"
    assert [one["start"] for one in begun] == sorted(one["start"] for one in begun)
    assert all(one["start"] % EVERY == 0 for one in begun)
    assert events(struck, "hung")
    shrunk, found = begun[-1]["start"], losses(struck)
    assert found[:shrunk] == losses(whole)[:shrunk], "as many workers, the same bits"
    apart = [abs(a - b) / b for a, b in zip(found[shrunk:], losses(whole)[shrunk:], strict=True)]
    assert np.median(apart) < 0.02, "the same samples and masks, sums in another order: other samples are 0.09 apart"
    summary = json.loads((struck / "summary.json").read_text())
    assert summary["steps"] == STEPS


def test_a_run_grows_again_and_saves_when_told_of_an_end(nodes: Nodes, archive: str, tmp_path: Path) -> None:
    run, rng = tmp_path / "run", np.random.default_rng(0)
    settings = ["--num-steps", "100000", "--checkpoint-every", "200", *SETTINGS, "--workers", "1:2"]
    ended = pytest.raises(SystemExit, match=f"ended with {-signal.SIGKILL}")
    with ended, running(nodes, ["mae_tiny", archive, str(run), *settings]) as process:

        def has_begun(workers: int) -> bool:
            begun = starts(run)
            return bool(begun) and begun[-1]["workers"] == workers and reached(run) > begun[-1]["start"] + 20

        def is_saved() -> bool:
            told = [event for event in events(run, "checkpoint") if "because" in event]
            return bool(told) and committed(run) >= told[0]["step"]

        assert wait_for(lambda: has_begun(2), process)
        node = nodes.choose(rng)
        nodes.announce(node, NOTICE_SECONDS)
        assert wait_for(is_saved, process)
        nodes.kill(node)
        assert wait_for(lambda: has_begun(1), process)
        nodes.add()
        assert wait_for(lambda: has_begun(2), process)
        process.kill()  # how soon a run grows is Ray's to say, so its steps are more than it ever needs
    (told,) = [event for event in events(run, "checkpoint") if "because" in event]
    assert told["because"] == "a machine is leaving"
    begun = starts(run)
    sizes = [size for size, _ in itertools.groupby(one["workers"] for one in begun)]
    assert sizes == [2, 1, 2], "it has shrunk, and grown again"
    assert begun[1]["start"] >= told["step"], "what came before the notice is not lost with the machine"
    recorded = [record["step"] for record in lines(run / "metrics.jsonl")]
    assert recorded == list(range(len(recorded))), "each step is recorded once"
