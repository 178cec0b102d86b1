"""Kill a run's workers and machines at random and see what it costs: `python -m tests.bench.bench_kills ARCHIVE [--kills 25]`.

A Ray cluster of several nodes on this machine, each with a raylet of its own. One run is left alone; another with the same
arguments loses a training worker or a whole node, or one hangs, again and again, each time once it has a new checkpoint and at a
moment drawn from the two intervals after that. What is lost is the time from the checkpoint that it goes on from to the blow, or
from the start before the blow where that is later.
At the end every step's loss is compared. With --elastic the killed node comes back only later: the run shrinks and grows again.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ray.cluster_utils import Cluster

from cluster.checkpoints import COMMITTED
from cluster.run import Run

STORE = {"object_store_memory": 200_000_000}
GIVE_UP_SECONDS = 900.0
KINDS = ("worker", "node", "worker", "notice", "hang")
"""A process killed, a machine lost, a machine lost that was said to be before, a process that stops without ending."""
NOTICE_SECONDS = 15.0
TIMEOUT_SECONDS = 15
"""How long ranks wait for one that hangs."""


class Nodes:
    """A head without CPUs, and nodes that hold a training worker each, one of them to spare."""

    def __init__(self, num_nodes: int) -> None:
        # A folder of its own (a short path: it holds sockets), so that nothing else on this machine takes it for its Ray.
        self._folder = tempfile.mkdtemp(prefix="kills")
        os.environ["RAY_TMPDIR"] = self._folder
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
        self._nodes = [self._cluster.add_node(num_cpus=1, **STORE) for _ in range(num_nodes)]
        self.environment = {**os.environ, "RAY_ADDRESS": self._cluster.address}

    def add(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=1, **STORE))

    def workers(self) -> list[tuple[int, psutil.Process]]:
        """Return the training workers, each with the number of its node."""
        found = []
        for number, node in enumerate(self._nodes):
            for raylet in node.all_processes["raylet"]:
                found += [(number, child) for child in psutil.Process(raylet.process.pid).children() if _trains(child)]
        return found

    def strike_worker(self, rng: np.random.Generator, blow: int) -> None:
        """Send one training worker the signal `blow`."""
        workers = self.workers()
        workers[int(rng.integers(len(workers)))][1].send_signal(blow)

    def choose(self, rng: np.random.Generator) -> Any:
        """Return a node that has a worker; it is not counted as one of the nodes any more."""
        workers = self.workers()
        return self._nodes.pop(workers[int(rng.integers(len(workers)))][0])

    def announce(self, node: Any, seconds: float) -> None:
        """Say that the node will be taken away, as clouds do."""
        notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "bench_kills"]
        notice += ["--node-id", node.node_id, "--deadline-remaining-seconds", str(int(seconds))]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self._cluster.address]
        subprocess.run([*ray, *notice], check=True, capture_output=True)

    def kill(self, node: Any) -> None:
        """Kill the node's raylet and all that is on it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def _trains(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in process.name() + "".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


@contextmanager
def running(nodes: Nodes, arguments: list[str], seconds: float = GIVE_UP_SECONDS) -> Iterator[subprocess.Popen[str]]:
    """Run inside, and after it to the run's end, which has to come within `seconds`."""
    command = [sys.executable, "-m", "jobs.cli", "pretrain", *arguments, "--json"]
    process = subprocess.Popen(command, env=nodes.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    if process.returncode:
        raise SystemExit(f"terraloom pretrain ended with {process.returncode}:\n{errors[-3000:]}")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.is_file() else []


def reached(run: Path) -> int:
    """Return the last step that is written down."""
    records = lines(run / "metrics.jsonl")
    return records[-1]["step"] if records else -1


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in Run(str(run), "pretrain").events() if event["event"] in kinds]


def committed(run: Path) -> int:
    """Return the step of the last checkpoint that the run would go on from."""
    try:
        listed = json.loads((run / "checkpoints" / COMMITTED).read_text())["checkpoint_results"]
    except (OSError, json.JSONDecodeError):  # not yet, or just being written
        return 0
    return max(int(one["checkpoint_dir_name"]) for one in listed)


def starts(run: Path) -> list[dict[str, Any]]:
    return events(run, "training")


def interval(run: Path) -> float:
    """Return the median seconds between two checkpoints of an undisturbed stretch, 0 before there are two."""
    made = events(run, "training", "checkpoint")
    apart = [b["time"] - a["time"] for a, b in itertools.pairwise(made) if a["event"] == b["event"] == "checkpoint"]
    return float(np.median(apart)) if apart else 0.0


def wait_for(condition: Any, process: subprocess.Popen[str]) -> bool:
    """Wait until `condition` holds; False if the run has ended before."""
    until = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise SystemExit(f"nothing has happened for {GIVE_UP_SECONDS:g} s")
        time.sleep(0.1)
    return True


def disturb(nodes: Nodes, arguments: list[str], run: Path, kills: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Run, striking `kills` times, each kind in turn; return what each kill cost."""
    found: list[dict[str, Any]] = []
    with running(nodes, arguments, 4 * GIVE_UP_SECONDS) as process:
        while len(found) < kills and (cost := strike(nodes, run, KINDS[len(found) % len(KINDS)], process, rng)):
            found.append(cost)
            print(cost, flush=True)
    return found


def strike(nodes: Nodes, run: Path, kind: str, process: subprocess.Popen[str], rng: np.random.Generator) -> dict[str, Any] | None:
    """Kill a `kind` within two intervals of a new checkpoint; None if the run has ended."""
    made = len(events(run, "checkpoint"))
    if not wait_for(lambda: len(events(run, "checkpoint")) > made and interval(run) and len(nodes.workers()) == 2, process):
        return None
    time.sleep(rng.uniform(0, 2 * interval(run)))
    count, begin = len(starts(run)), time.time()
    if kind in ("node", "notice"):
        node = nodes.choose(rng)
        if kind == "notice":
            nodes.announce(node, NOTICE_SECONDS)
            begin = time.time() + NOTICE_SECONDS
            while time.time() < begin and len(starts(run)) == count:  # Ray may be there before the end
                time.sleep(0.1)
        nodes.kill(node)
        nodes.add()
    else:
        nodes.strike_worker(rng, signal.SIGSTOP if kind == "hang" else signal.SIGKILL)
    if not wait_for(lambda: len(starts(run)) > count, process):
        return None
    begun, again = starts(run)[count - 1]["time"], starts(run)[-1]
    made = [event["time"] for event in events(run, "checkpoint") if event["step"] == again["start"]]
    since = max([begun, *made])
    return {"kind": kind, "lost": begin - since, "interval": interval(run), "seconds": again["time"] - begin}


def elastic(nodes: Nodes, arguments: list[str], run: Path) -> list[dict[str, Any]]:
    """Run with 1 to 2 workers; take a node away, give it back later; return the sizes the run had, and when."""
    rng = np.random.default_rng(0)
    with running(nodes, [*arguments, "--workers", "1:2"], 4 * GIVE_UP_SECONDS) as process:
        wait_for(lambda: len(starts(run)) and starts(run)[-1]["workers"] == 2 and reached(run) > 25, process)
        nodes.kill(nodes.choose(rng))
        killed = time.time()
        wait_for(lambda: starts(run)[-1]["workers"] == 1 and reached(run) > starts(run)[-1]["start"] + 5, process)
        nodes.add()
        given = time.time()
        wait_for(lambda: starts(run)[-1]["workers"] == 2, process)
    return [
        {"workers": e["workers"], "start": e["start"], "after_kill": e["time"] - killed, "after_gift": e["time"] - given}
        for e in starts(run)
    ]


def compare(whole: Path, struck: Path, width: int = 50) -> str:
    """Return how far the losses of two runs are apart, step by step and as means of `width` steps."""
    one, other = ({r["step"]: r["loss"] for r in lines(run / "metrics.jsonl") if r["loss"] is not None} for run in (whole, struck))
    both = np.array([(one[step], other[step]) for step in sorted(one.keys() & other.keys())])
    width = min(width, len(both))
    means = both[: len(both) // width * width].reshape(-1, width, 2).mean(1)
    of_steps, of_means = (np.abs(pair[:, 1] / pair[:, 0] - 1) for pair in (both, means))
    return (
        f"steps: {len(one)} and {len(other)}, {len(both)} of them in both; a step's loss apart by {of_steps.max():.2g} at most; "
        f"means of {width} by {of_means.max():.2g} at most, {np.median(of_means):.2g} in the middle, {of_means[-1]:.2g} at the end"
    )


def table(found: list[dict[str, Any]]) -> str:
    rows = [
        "| killed | times | s until training again, median (most) | s of training lost, median (most) | s between checkpoints |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted(set(KINDS)):
        of_kind = [one for one in found if one["kind"] == kind]
        if of_kind:
            seconds, lost, apart = ([one[key] for one in of_kind] for key in ("seconds", "lost", "interval"))
            rows.append(
                f"| {kind} | {len(of_kind)} | {np.median(seconds):.0f} ({max(seconds):.0f}) | {np.median(lost):.1f} ({max(lost):.1f}) "
                f"| {np.median(apart):.1f} |"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--recipe", default="mae_tiny")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--steps", type=int, default=0, help="of the run; default: enough for all kills")
    parser.add_argument("--learning-rate", help="of the runs; default: the recipe's")
    parser.add_argument("--elastic", action="store_true")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    options = parser.parse_args()
    steps = options.steps or options.kills * 4 * options.every
    shared = [options.recipe, options.archive]
    settings = ["--num-steps", str(steps), "--checkpoint-every", str(options.every), "--health-every", "0", "--batch-size", "8"]
    settings += ["--timeout-s", str(TIMEOUT_SECONDS)]
    settings += ["--learning-rate", options.learning_rate] if options.learning_rate else []
    nodes = Nodes(3 if not options.elastic else 2)
    try:
        if options.elastic:
            run = options.work / "elastic"
            print(json.dumps(elastic(nodes, [*shared, str(run), *settings], run), indent=1))
            killed = run
        else:
            killed = options.work / "killed"
            found = disturb(nodes, [*shared, str(killed), *settings], killed, options.kills, np.random.default_rng(0))
            print(table(found))
        whole = options.work / "whole"
        with running(nodes, [*shared, str(whole), *settings], 4 * GIVE_UP_SECONDS):
            pass
    finally:
        nodes.stop()
    print(compare(whole, killed))


if __name__ == "__main__":
    main()
