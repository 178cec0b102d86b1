"""Every job on a cluster of several nodes and S3: submitted, followed, lost with its cluster, finished; nothing secret told.

One chain: what its parts leave is what the next ones need, and what is searched at the end.
"""

import gzip
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
from PIL import Image

from jobs.cli import JOBS
from tests.head import Cluster

SECRET, USER = "planted-secret-0123456789abcdef", "PLANTEDKEYID01234567"
PATIENCE_SECONDS = 600
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1500)  # the first test makes what all look at
TOGETHER = """
import json, sys
from cluster.submit import begin, follow, job_server
client = job_server(None)
jobs = [begin(client, arguments) for arguments in json.loads(sys.argv[1])]
ended = [follow(client, job) for job in jobs]
print()
print(json.dumps([ended, [info.dict() for info in client.list_jobs()]], default=str))
"""
"""Jobs beside each other: most of each is the start of a process."""
TRAIN = ["pretrain", "mae_tiny", "s3://earth/archive", "s3://earth/run", "--workers", "1", "--cpus-per-worker", "3"]
TRAIN += ["--num-steps", "60", "--checkpoint-every", "10", "--health-every", "10", "--batch-size", "4", "--window-shards", "2"]
ELSEWHERE = {"submit", "manifest", "simulate"}
"""No jobs, or submitted by other tests."""
FIRST_DATE, NEXT_DATE = "202304", "202308"
PLAN = """
question: which is better?
arms: {mae: {recipe: mae_tiny}, simclr: {recipe: simclr_tiny}}
samples: [64]
reference: mae
"""
SCHEDULE = """
scenes: scenes
archive: archive
folder: retraining
champion: run
recipe: mae_tiny
options: {num_steps: 4, batch_size: 8, workers: 0}
suite: {archive: suite, tasks: [landcover], target: landcover, sensors: [sentinel2_l2a], protocols: [knn], seeds: 1}
registration: {register: false}
labels: LABELS
"""


class Setting:
    """S3, the cluster of the day, and all that was said."""

    def __init__(self, folder: Path) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": SECRET}
        region = {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        # Nodes may be on their way; and numbers of a run of seconds are to be seen.
        self._given = {**keys, "TERRALOOM_NODE_WAIT_S": str(PATIENCE_SECONDS), "RAY_metrics_report_interval_ms": "1000"}
        self._ours = keys | region
        credentials = {"aws_access_key_id": USER, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self.s3 = boto3.client("s3", endpoint_url=region["AWS_ENDPOINT_URL"], **credentials)
        self.s3.create_bucket(Bucket="earth")
        self.folder, self.said, self.submitted = folder, [], set[str]()
        self.clusters: list[Cluster] = []
        self.exported: set[str] = set()
        self._is_over = threading.Event()
        threading.Thread(target=self._scrape, daemon=True).start()

    def start_cluster(self, cpus: int, nodes: tuple[int, ...]) -> None:
        self.clusters.append(Cluster(cpus, nodes, self._given))

    @property
    def cluster(self) -> Cluster:
        return self.clusters[-1]

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.environment | self._ours

    def together(self, *commands: list[str]) -> str:
        """Submit jobs beside each other and follow them to their good end; return what was said."""
        self.submitted |= {command[0] for command in commands}
        call = [sys.executable, "-c", TOGETHER, json.dumps(commands)]
        done = subprocess.run(call, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        self.said += [done.stdout, done.stderr]
        assert done.returncode == 0, done.stderr + done.stdout[-3000:]
        ended, _ = json.loads(done.stdout.splitlines()[-1])
        failed = [job for job in ended if job["status"] != "SUCCEEDED" or job["exit_status"]]
        assert not failed, (failed, [line for line in done.stdout.splitlines() if "terraloom: " in line], done.stdout[-3000:])
        return done.stdout

    def submit(self, *command: str) -> "Followed":
        self.submitted.add(command[0])
        call = [sys.executable, "-m", "jobs.cli", "submit", *command]
        return Followed(subprocess.Popen(call, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))

    def deliver(self, planet: Path, month: str) -> None:
        """Have the satellites' scenes of a month arrive on S3."""
        for path in (planet / "scenes").glob(f"sentinel*_{month}*.tif"):
            self.s3.upload_file(str(path), "earth", f"scenes/{path.name}")

    def lines(self, key: str) -> list[dict[str, Any]]:
        """Return the lines of a run's file on S3."""
        try:
            text = self.s3.get_object(Bucket="earth", Key=key)["Body"].read().decode()
        except ClientError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def objects(self) -> Iterator[tuple[str, bytes]]:
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket="earth"):
            for item in page["Contents"]:
                yield item["Key"], self.s3.get_object(Bucket="earth", Key=item["Key"])["Body"].read()

    def end(self) -> None:
        self._is_over.set()
        for cluster in self.clusters:
            cluster.stop()
        self._server.stop()

    def _scrape(self) -> None:
        """Note the names of what all nodes export, as Prometheus finds them."""
        while not self._is_over.wait(2):
            for cluster in self.clusters[-1:]:
                known = cluster.folder / "prom_metrics_service_discovery.json"
                try:
                    targets = json.loads(known.read_text())[0]["targets"]
                except (OSError, ValueError, LookupError):
                    continue
                for target in targets:
                    try:
                        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                            text = answer.read().decode()
                    except (OSError, urllib.error.URLError):
                        continue
                    self.exported |= {re.split(r"[{ ]", line, maxsplit=1)[0] for line in text.splitlines() if line[:1] != "#"}


class Followed:
    """A `terraloom submit` that goes on, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, list[str]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: any(text in line for line in self.lines), self)

    def end(self) -> tuple[int, str]:
        status = self.process.wait(timeout=PATIENCE_SECONDS)
        self._reader.join(timeout=60)
        return status, "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(iter(self.process.stdout.readline, ""))


def wait_until(holds: Callable[[], bool], followed: Followed | None = None) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        said = "".join(followed.lines) if followed else ""
        assert followed is None or followed.process.poll() is None, said
        assert time.monotonic() < limit, said
        time.sleep(0.2)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    setting = Setting(tmp_path_factory.mktemp("nodes"))
    try:
        setting.start_cluster(cpus=1, nodes=(1, 1))
        yield setting
    finally:
        setting.end()


@pytest.fixture(scope="module")
def archive(setting: Setting, planet: Path) -> str:
    """An archive on S3, of the satellites' first date alone: aerial images are most of the pixels."""
    patches = setting.folder / "patches" / "River"
    patches.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (40, 90, 140 + number)).save(patches / f"River_{number}.jpg")
    setting.deliver(planet, FIRST_DATE)
    setting.together(
        ["scan", "s3://earth/scenes"],
        ["sensors", "list"],
        ["estimate", "mae_tiny", "--gpus", "2", "--gpu", "h200"],
        ["ingest", "eurosat_rgb", str(patches.parent), "s3://earth/patches"],
    )
    labels = ["--labels", str(planet / "truth")]
    setting.together(
        ["coregister", "s3://earth/scenes", "s3://earth/archive", "--register", "False", "--shard-sites", "2", *labels]
    )
    return "s3://earth/archive"


@pytest.fixture(scope="module")
def run(setting: Setting, archive: str) -> str:
    """A run that waited for a node, was lost with its cluster, and was finished by the next."""
    first = setting.submit(*TRAIN)
    first.wait_for("waiting up to")
    assert "1 workers need 3.25 CPUs, the cluster has 3; waiting" in "".join(first.lines)
    setting.together(["verify", archive], ["inspect", archive], ["repair", archive])
    setting.cluster.add(cpus=4)

    def has_committed() -> bool:  # the checkpoint before the one that may be on its way
        return sum(event["event"] == "checkpoint" for event in setting.lines("run/events.jsonl")) > 1

    wait_until(has_committed, first)
    setting.cluster.kill()
    status, said = first.end()
    setting.said.append(said)
    assert status == 1, said
    assert re.fullmatch(r"terraloom: the cluster has gone while job 'raysubmit_\w+' was followed \(.*\); .*", said.splitlines()[-1])
    assert "Traceback" not in said
    setting.start_cluster(cpus=1, nodes=(4,))
    status, said = setting.submit(*TRAIN).end()
    setting.said.append(said)
    assert status == 0, said
    return "s3://earth/run"


def test_a_job_lost_with_its_cluster_is_finished_by_submitting_it_again(setting: Setting, run: str) -> None:
    assert [record["step"] for record in setting.lines("run/metrics.jsonl")] == list(range(60))
    begun, again = [event["start"] for event in setting.lines("run/events.jsonl") if event["event"] == "training"]
    assert begun == 0
    assert again >= 10
    assert again % 10 == 0
    assert json.loads(dict(setting.objects())["run/summary.json"])["steps"] == 60


def test_every_job_is_submitted(setting: Setting, run: str, archive: str, planet: Path) -> None:
    setting.together(
        ["export", run, "s3://earth/model"],
        ["report", run],
        ["embed", run, archive, "s3://earth/embedded"],
        ["distill", "student_tiny", run, archive, "s3://earth/student", "--workers", "0", "--num-steps", "2", "--batch-size", "2"],
        ["evaluate", "landcover", run, "s3://earth/scores", "--protocols", "knn", "--seeds", "1", "--sensors", "sentinel2_l2a"],
    )
    for key, content in list(setting.objects()):
        if key.startswith("archive/"):  # what a suite is: an archive of its own, to which nothing is added
            setting.s3.put_object(Bucket="earth", Key=key.replace("archive", "suite", 1), Body=content)
    setting.s3.put_object(Bucket="earth", Key="plan.yaml", Body=PLAN)
    setting.s3.put_object(Bucket="earth", Key="schedule.yaml", Body=SCHEDULE.replace("LABELS", str(planet / "truth")))
    setting.deliver(planet, NEXT_DATE)
    setting.together(["scan", "s3://earth/scenes"])
    setting.together(
        ["retrain", "s3://earth/schedule.yaml"],
        [
            "sweep",
            "s3://earth/plan.yaml",
            "s3://earth/suite",
            "s3://earth/sweep",
            "--probe-samples",
            "0",
            "--held-out-samples",
            "16",
        ],
    )
    retrained = json.loads(dict(setting.objects())["retraining/rounds/0001/decide.json"])
    assert retrained["outcome"] in ("promoted", "declined")
    swept = json.loads(dict(setting.objects())["sweep/summary.json"])
    assert (swept["cells"], swept["failed"]) == (2, 0)
    keys = {key for key, _ in setting.objects()}
    assert {"model/model.safetensors", "run/report.html", "student/summary.json", "scores/summary.json"} <= keys
    assert any(key.startswith("embedded/parts/") for key in keys)
    assert setting.submitted == JOBS.keys() - ELSEWHERE


def test_a_submitted_job_tells_its_beginning_and_end(setting: Setting, run: str) -> None:
    told = [json.loads(line) for text in setting.said for line in text.splitlines() if line.startswith('{"time"')]
    jobs = {(one["job"], one["event"], one.get("outcome")) for one in told}
    assert {("verify", "job_started", None), ("verify", "job_ended", "done"), ("pretrain", "job_ended", "done")} <= jobs


def test_the_dashboard_shows_what_is_exported(setting: Setting, run: str) -> None:
    """Every name of every chart, by what Prometheus was given while the jobs above ran."""
    board = json.loads((ROOT / "cluster" / "grafana" / "terraloom.json").read_text())
    charts = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
    names = {name for chart in charts for target in chart["targets"] for name in re.findall(r"ray_\w+", target["expr"])}
    assert len(names) > 15
    assert all(re.findall(r"ray_\w+", target["expr"]) for chart in charts for target in chart["targets"])
    limit = time.monotonic() + 120
    while names - setting.exported and time.monotonic() < limit:
        time.sleep(1)
    assert names - setting.exported == set()


def plain(name: str, content: bytes) -> bytes:
    """Return a file's bytes, and behind them what they hold compressed as text; chunks of arrays stay as they are."""
    found = content
    if name.endswith(".gz"):
        found += gzip.decompress(content)
    elif name.endswith(".parquet"):
        found += str(pq.read_table(BytesIO(content)).to_pylist()).encode()
    elif name.endswith(".npz"):
        for array in np.load(BytesIO(content)).values():
            found += str(array.tolist()).encode() if array.dtype.kind == "U" else array.tobytes()
    return found


def test_what_is_compressed_is_searched() -> None:
    table, arrays = BytesIO(), BytesIO()
    pq.write_table(pa.table({"note": [f"{i} {SECRET}" for i in range(99)]}), table, compression="zstd", use_dictionary=False)
    np.savez_compressed(arrays, text=np.array([SECRET] * 99), raw=np.frombuffer(USER.encode() * 99, np.uint8))
    files = {"a.parquet": table.getvalue(), "a.npz": arrays.getvalue(), "a.gz": gzip.compress(SECRET.encode() * 99)}
    assert plain("a.npz", files["a.npz"]).count(USER.encode()) == 99
    for name, content in files.items():
        assert content.count(SECRET.encode()) < 99 <= plain(name, content).count(SECRET.encode()), name


def test_nothing_secret_is_told(setting: Setting, run: str) -> None:
    """Not by jobs, manifests, what is on S3, nor in the clusters' own folders."""
    call = [sys.executable, "-m", "jobs.cli", "manifest", *TRAIN, "--secret", "earth-keys"]
    done = subprocess.run(call, env=setting.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert "secretKeyRef" in done.stdout
    texts = {"manifest": done.stdout.encode(), "said": "".join(setting.said).encode(), **dict(setting.objects())}
    for cluster in setting.clusters:
        for path in cluster.folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and path != cluster.folder / "token":
                texts[str(path)] = path.read_bytes()
    assert any("job-driver-raysubmit" in name for name in texts)
    secrets = [SECRET.encode(), *(cluster.token.encode() for cluster in setting.clusters)]
    readable = {name: plain(name, content) for name, content in texts.items()}
    assert [name for name, text in readable.items() if any(secret in text for secret in secrets)] == []
