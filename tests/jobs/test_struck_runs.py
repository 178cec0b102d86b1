"""A run on several nodes that loses a worker, then has one hang, then loses a node for good: it ends as if nothing had happened."""

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.bench.bench_kills import Nodes, events, lines, reached, running, starts, wait_for

STEPS, EVERY = 240, 20
SETTINGS = ["--num-steps", str(STEPS), "--checkpoint-every", str(EVERY), "--batch-size", "8", "--window-shards", "2"]
SETTINGS += ["--health-every", "0", "--timeout-s", "15"]
pytestmark = pytest.mark.timeout(900)


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
    with running(nodes, ["mae_tiny", archive, str(whole), *SETTINGS, "--workers", "2"]):
        pass
    with running(nodes, ["mae_tiny", archive, str(struck), *SETTINGS, "--workers", "1:2"]) as process:

        def further(count: int) -> bool:
            return len(starts(struck)) == count and reached(struck) > starts(struck)[-1]["start"] + EVERY

        assert wait_for(lambda: further(1) and len(nodes.workers()) == 2, process)
        nodes.strike_worker(rng, signal.SIGKILL)
        assert wait_for(lambda: further(2) and len(nodes.workers()) == 2, process)
        nodes.strike_worker(rng, signal.SIGSTOP)
        assert wait_for(lambda: further(3) and len(nodes.workers()) == 2, process)
        nodes.kill(nodes.choose(rng))
    begun = starts(struck)
    assert [one["workers"] for one in begun] == [2, 2, 2, 1]
    assert all(a["start"] < b["start"] for a, b in pairwise(begun)), "it goes on from a later checkpoint each time"
    assert all(one["start"] % EVERY == 0 for one in begun)
    (hung,) = {event["step"] for event in events(struck, "hung")}
    assert begun[1]["start"] <= hung
    shrunk, found = begun[-1]["start"], losses(struck)
    assert found[:shrunk] == losses(whole)[:shrunk], "as many workers, the same bits"
    assert found[shrunk:] == pytest.approx(losses(whole)[shrunk:], rel=0.02)
    summary = json.loads((struck / "summary.json").read_text())
    assert summary["steps"] == STEPS
