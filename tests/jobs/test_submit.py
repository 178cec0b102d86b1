"""Submitting to a real Ray head with its job server and token: logs, exit status, refusal without a server."""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """One free port per name: a Ray head's default ports may belong to another Ray on this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return dict(zip(names, ports, strict=True))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory):
    """A Ray head of its own on this machine; yields the environment in which to talk to it."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex(32))
    binaries = Path(sys.executable).parent
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    ports = free_ports(("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port"))
    command = [binaries / "ray", "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", "/tmp/ray_submit_test"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("Ray did not start")
    yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
    process.terminate()
    process.wait(timeout=60)


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
