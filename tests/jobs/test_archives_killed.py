"""Workers, nodes and drivers killed at random moments: the same command again ends with the same archive.

A few kills by default; TERRALOOM_KILLS=24 for that many of each job.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from jobs.registration_report import read_reports
from pipeline import storage
from pipeline.archive import open_archive

NUM_KILLS = int(os.environ.get("TERRALOOM_KILLS", "3"))
KINDS = ("worker", "node", "driver")


class Nodes:
    """A Ray cluster of three nodes on this machine: a head without CPUs and two that work."""

    def __init__(self) -> None:
        small = {"object_store_memory": 100_000_000}
        # A folder of its own (a short path: it holds sockets), so that nothing else on this machine takes it for its Ray.
        self._folder = tempfile.mkdtemp(prefix="kills")
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("RAY_TMPDIR", self._folder)
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
        self._workers = [self._cluster.add_node(num_cpus=1, **small) for _ in range(2)]
        self.environment = {**os.environ, "RAY_ADDRESS": self._cluster.address}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jobs.cli", *arguments, "--json"]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, *arguments: str) -> dict:
        output, errors = (process := self.start(*arguments)).communicate(timeout=300)
        assert process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])

    def kill_worker(self, rng: np.random.Generator) -> bool:
        """Kill one process that writes a shard; False where none does."""
        raylets = [process.process.pid for node in self._workers for process in node.all_processes["raylet"]]
        writing = [child for pid in raylets for child in psutil.Process(pid).children() if _is_writing(child)]
        if writing:
            writing[int(rng.integers(len(writing)))].kill()
        return bool(writing)

    def kill_node(self, rng: np.random.Generator) -> None:
        self._cluster.remove_node(self._workers.pop(int(rng.integers(2))), allow_graceful=False)
        self._workers.append(self._cluster.add_node(num_cpus=1, object_store_memory=100_000_000))

    def stop(self) -> None:
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def _is_writing(process: psutil.Process) -> bool:
    try:
        return "_write_shard" in process.name() + "".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    found = Nodes()
    yield found
    found.stop()


def disturb(nodes: Nodes, command: list[str], archive: Path, wanted: int, rng: np.random.Generator) -> list[str]:
    """Run `command`, killing up to `wanted` times, each time after some more has been published; return what was killed."""
    killed: list[str] = []
    kinds = [str(kind) for _ in range(wanted) for kind in rng.permutation(KINDS)]
    process, seen = nodes.start(*command), 0
    while len(killed) < wanted:
        while process.poll() is None and (parts := len(list(archive.glob("catalog/[!.]*.parquet")))) <= seen:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return killed
        seen = parts
        kind = kinds[len(killed)]
        if kind == "worker":
            while not nodes.kill_worker(rng) and process.poll() is None:
                time.sleep(0.01)
            if process.poll() is not None:
                continue
        if kind == "node":
            nodes.kill_node(rng)
        if kind == "driver":
            process.kill()
            process.communicate()
            process = nodes.start(*command)
        killed.append(kind)
    assert process.wait(timeout=300) == 0, process.communicate()[1]
    return killed


def check_survives(nodes: Nodes, command: list[str], tmp_path: Path) -> None:
    whole = nodes.finish(*command, str(tmp_path / "whole"))
    statistics = open_archive(str(tmp_path / "whole")).read_statistics()
    killed: list[str] = []
    for seed in range(100):
        archive = tmp_path / f"killed_{seed}"
        killed += disturb(nodes, [*command, str(archive)], archive, NUM_KILLS - len(killed), np.random.default_rng(seed))
        done = nodes.finish(*command, str(archive))
        assert done["shards_written"] == 0, "it was not finished"
        assert done["digest"] == whole["digest"]
        assert nodes.finish("verify", str(archive))["tiles"] == whole["tiles"]
        opened = open_archive(str(archive))
        assert opened.read_statistics() == statistics
        for folder in ("shards", "catalog"):
            names = [n for n in storage.names(str(archive / folder)) if not n.startswith(".")]
            assert names == storage.names(str(tmp_path / "whole" / folder))
        if len(killed) >= NUM_KILLS:
            break
    print("killed:", {kind: killed.count(kind) for kind in KINDS}, "in", seed + 1, "archives")
    assert len(killed) >= NUM_KILLS
    assert set(killed) == set(KINDS)


def test_coregister_survives_kills(nodes: Nodes, planet: Path, tmp_path: Path) -> None:
    command = ["coregister", "--register", "False", "--shard-sites", "1", str(planet / "scenes")]
    check_survives(nodes, command, tmp_path)


@pytest.mark.skipif(NUM_KILLS == 3, reason="the kills of ingest are run when TERRALOOM_KILLS sets their number")
def test_ingest_survives_kills(nodes: Nodes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place in range(40):
        for name in ("s1_before", "s1_after", "s2_before", "s2_after", "flood_mask"):
            path = tmp_path / "ombria" / name / f"{place:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (512, 512, 3) if name.startswith("s2") else (512, 512)
            Image.fromarray(rng.integers(1, 255, shape, dtype=np.uint8)).save(path)
    check_survives(nodes, ["ingest", "ombria", str(tmp_path / "ombria")], tmp_path)


def test_two_jobs_at_once_on_disjoint_ground_lose_nothing(nodes: Nodes, tmp_path: Path) -> None:
    import rasterio
    from affine import Affine

    from jobs.simulate import scan_folder

    rng = np.random.default_rng(0)
    for sensor, left, dtype in (("rgb_aerial", 640_000, np.uint8), ("dsm", 672_000, np.float32)):
        folder = tmp_path / sensor
        folder.mkdir()
        for number in range(3):
            profile = {"crs": "EPSG:32632", "transform": Affine(10, 0, left, 0, -10, 5_290_240), "dtype": dtype, "nodata": 0}
            count, shape = (3 if sensor == "rgb_aerial" else 1), (512, 512)
            with rasterio.open(
                folder / f"{sensor}_2020010{number + 1}.tif", "w", driver="GTiff", count=count, height=512, width=512, **profile
            ) as file:
                file.write(rng.integers(1, 250, (count, *shape)).astype(dtype))
        scan_folder(str(folder), sensor, "2020-01-01T00:00:00Z", None)
    archive, options = str(tmp_path / "archive"), ["--register", "False", "--shard-sites", "2"]
    both = [nodes.start("coregister", *options, str(tmp_path / sensor), archive) for sensor in ("rgb_aerial", "dsm")]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    opened = open_archive(archive)
    assert set(opened.sensors) == {"rgb_aerial", "dsm"}
    assert opened.catalog()["sensor"].value_counts().to_dict() == {"rgb_aerial": 3 * 64, "dsm": 3 * 64}
    assert opened.read_statistics()["archive_digest"] == opened.digest()
    assert len(read_reports(opened)["scenes"]) == 6
    assert nodes.finish("verify", archive)["faults"] == 0


def test_many_processes_add_definitions_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pipeline.archive import *\n"
        "for n in range(10): create_archive(sys.argv[1], Grid(), {}, {f'label_{sys.argv[2]}_{n}': Label('binary', 'site'), 'shared': Label('fraction', 'site')})\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "archive")]
    running = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(4)]
    for process in running:
        assert process.wait(timeout=120) == 0, process.communicate()[1]
    assert set(open_archive(str(tmp_path / "archive")).labels) == {"shared"} | {
        f"label_{p}_{n}" for p in range(4) for n in range(10)
    }
