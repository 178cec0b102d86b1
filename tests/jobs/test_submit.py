"""Submitting to a real Ray head with its job server and token: logs, exit status, refusal without a server."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.head import Cluster


@pytest.fixture(scope="module")
def head():
    """A Ray head of its own on this machine; yields the environment in which to talk to it."""
    cluster = Cluster(cpus=2)
    yield cluster.environment
    cluster.stop()


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", "submit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_job_runs_and_its_log_comes_back(head: dict[str, str], planet: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "scenes.json"
    done = submit(head, "scan", str(planet / "scenes"), "--out", str(catalog))
    assert done.returncode == 0, done.stderr
    assert catalog.is_file()
    assert "sentinel1_grd" in done.stdout


def test_exit_status_of_the_job_is_ours(head: dict[str, str]) -> None:
    done = submit(head, "verify", "/no/archive")
    assert done.returncode == 2
    assert "no archive at '/no/archive'" in done.stdout


def test_a_job_is_asked_about_and_stopped(head: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "submit", "simulate", str(tmp_path / "planet"), "--size-m", "12800"]
    process = subprocess.Popen(command, env=head, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    name = next(line for line in process.stderr if line.startswith("submitted ")).split()[1].rstrip(":")
    asked = submit(head, "status", name, "--json")
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout.splitlines()[-1])
    assert found["status"] in ("PENDING", "RUNNING")
    assert found["entrypoint"].startswith("terraloom simulate")
    stopped = submit(head, "stop", name, "--json")
    assert json.loads(stopped.stdout.splitlines()[-1])["status"] == "STOPPED", stopped.stderr
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert submit(head, "follow", name).returncode == 1
    unknown = submit(head, "status", "nothing")
    assert unknown.returncode == 2
    assert "the cluster knows no job 'nothing' (knows" in unknown.stderr


def test_a_cluster_of_another_ray_is_refused() -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"version": "4", "ray_version": "2.61.0", "ray_commit": "", "session_name": ""}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = submit({**os.environ}, "--address", f"http://127.0.0.1:{server.server_address[1]}", "verify", "x")
    server.shutdown()
    assert done.returncode == 2
    assert re.search(r"runs Ray 2\.61\.0, this is [\d.]+; install the cluster's here", done.stderr)


def test_no_server_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", "--address", "http://127.0.0.1:9", "verify", "x"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no Ray job server at http://127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
