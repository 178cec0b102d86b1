"""Workers, nodes and drivers killed at random moments: the same command again ends with the archive of a quiet run.

`TERRALOOM_KILLS` sets the number of kills of each kind and job (default 1; 4 makes 24 in all).
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from jobs.archives import verify
from pipeline.archive import open_archive

KILLS = int(os.environ.get("TERRALOOM_KILLS", "1"))
only_when_asked = pytest.mark.skipif(KILLS < 2, reason="one job per kind of kill unless TERRALOOM_KILLS asks for more")
JOBS = {"coregister": "coregister {planet}/scenes {out} --shard-sites 2", "ingest": "ingest ombria {shared}/ombria {out}"}


def start(job: str, planet: Path, shared: Path, out: Path, address: str | None = None) -> subprocess.Popen[str]:
    arguments = JOBS[job].format(planet=planet, shared=shared, out=out).split()
    environment = {**os.environ, "RAY_ADDRESS": address} if address else os.environ
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out


def wait_for_work(process: subprocess.Popen[str], out: Path, generator: random.Random) -> None:
    """Return at a random moment between the first sign of work and its end."""
    limit = time.monotonic() + 200
    while not (out / "archive.json").is_file() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(generator.uniform(0, 4))


def busy_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes in the middle of one of our tasks (Ray's own agents are called ray:: too, and idle workers)."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "".join(child.cmdline()[:1]).startswith("ray::_")]


@pytest.fixture(scope="module")
def quiet(planet: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of each job's archive when nothing is killed."""
    digests = {}
    for job in JOBS:
        out = tmp_path_factory.mktemp("quiet") / job
        finish(start(job, planet, shared_data, out))
        digests[job] = open_archive(str(out)).digest()
    return digests


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head without CPUs and two nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.parametrize("job", ["coregister", pytest.param("ingest", marks=only_when_asked)])
def test_killed_drivers(job: str, quiet: dict[str, str], planet: Path, shared_data: Path, tmp_path: Path, cluster: None) -> None:
    generator = random.Random(f"driver {job}")
    for _ in range(KILLS):
        process = start(job, planet, shared_data, tmp_path / "archive")
        wait_for_work(process, tmp_path / "archive", generator)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(start(job, planet, shared_data, tmp_path / "archive"))
    assert open_archive(str(tmp_path / "archive")).digest() == quiet[job]
    assert verify(str(tmp_path / "archive"))["unpublished_shards"] == 0


@pytest.mark.parametrize("job", ["ingest", pytest.param("coregister", marks=only_when_asked)])
def test_killed_workers(job: str, quiet: dict[str, str], planet: Path, shared_data: Path, tmp_path: Path, cluster: None) -> None:
    generator = random.Random(f"worker {job}")
    process, killed = start(job, planet, shared_data, tmp_path / "archive"), 0
    wait_for_work(process, tmp_path / "archive", generator)
    while process.poll() is None and killed < KILLS:
        for worker in busy_workers(process)[:1]:
            worker.kill()
            killed += 1
        time.sleep(generator.uniform(0, 1))
    finish(process)
    assert open_archive(str(tmp_path / "archive")).digest() == quiet[job]
    assert verify(str(tmp_path / "archive"))["unpublished_shards"] == 0


@pytest.mark.parametrize("job", ["coregister", pytest.param("ingest", marks=only_when_asked)])
def test_killed_nodes(job: str, quiet: dict[str, str], planet: Path, shared_data: Path, tmp_path: Path, nodes: Cluster) -> None:
    generator = random.Random(f"node {job}")
    process = start(job, planet, shared_data, tmp_path / "archive", nodes.address)
    wait_for_work(process, tmp_path / "archive", generator)
    for _ in range(KILLS):
        if process.poll() is None:
            nodes.add_node(num_cpus=1)
            nodes.remove_node(generator.choice(sorted(nodes.worker_nodes, key=id)), allow_graceful=False)
            time.sleep(generator.uniform(0, 3))
    finish(process)
    assert open_archive(str(tmp_path / "archive")).digest() == quiet[job]
