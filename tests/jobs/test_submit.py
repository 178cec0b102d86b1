"""Submitting to a real Ray head with its job server and token: logs, exit status, refusal without a server or token."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import ray

from cluster.submit import SubmitConfig, begin, follow, job_server, status, stop
from jobs.cli import main
from pipeline.errors import InputError
from tests.head import Cluster


@pytest.fixture(scope="module")
def head():
    """A Ray head of its own on this machine; yields the environment in which to talk to it."""
    cluster = Cluster(cpus=2)
    yield cluster.environment
    cluster.stop()


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Start a job server of some Ray version, which answers everything else with a status of its own; return its address."""
    servers = []

    def start(version: str, status_of_others: int = 404) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                about = {"version": "4", "ray_version": version, "ray_commit": "", "session_name": ""}
                body = json.dumps(about).encode()
                self.send_response(200 if self.path == "/api/version" else status_of_others)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()


def submit(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", "submit", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_job_runs_and_its_log_comes_back(head: dict[str, str], planet: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "scenes.json"
    done = submit(head, "scan", str(planet / "scenes"), "--out", str(catalog))
    assert done.returncode == 0, done.stderr
    assert catalog.is_file()
    assert "sentinel1_grd" in done.stdout


def test_exit_status_and_variables_of_the_job_are_ours(head: dict[str, str]) -> None:
    done = submit(head | {"NOTE": "planted"}, "--driver-cpus", "1", "--env", "NOTE", "verify", "/no/archive")
    assert done.returncode == 2
    assert "no archive at '/no/archive'" in done.stdout
    assert "planted" not in done.stdout + done.stderr
    token = Path(head["RAY_AUTH_TOKEN_PATH"]).read_text()
    asked = Request(f"{head['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    with urlopen(asked, timeout=60) as answer:
        (job,) = (job for job in json.load(answer) if job["entrypoint"] == "terraloom verify /no/archive")
    assert job["runtime_env"]["env_vars"]["NOTE"] == "planted"


class Keeping:
    """Stands for a job server: keeps what it is asked for."""

    def submit_job(self, **asked: Any) -> str:
        self.asked = asked
        return "raysubmit_1"


def test_a_driver_has_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTE", "a b")
    monkeypatch.delenv("AWS_REGION", raising=False)
    client = Keeping()
    begin(client, ["verify", "x"], SubmitConfig(driver_cpus=2, driver_gpus=1, env=("NOTE",)))  # type: ignore[arg-type]
    assert (client.asked["entrypoint_num_cpus"], client.asked["entrypoint_num_gpus"]) == (2, 1)
    assert client.asked["runtime_env"]["env_vars"]["NOTE"] == "a b"
    begin(client, ["verify", "x"])  # type: ignore[arg-type]
    assert (client.asked["entrypoint_num_cpus"], client.asked["entrypoint_num_gpus"]) == (None, None)
    assert "NOTE" not in client.asked["runtime_env"]["env_vars"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env", "NOT_SET"], "variable 'NOT_SET' is not set here, expected its value in this environment; export it"),
        (
            ["--env", "HOME", "--env", "A=planted"],
            "variable 'A' comes with a value, expected the name alone; set it here and give --env A",
        ),
        (["--env", "MY_API_KEY"], "variable 'MY_API_KEY' is a secret by its name, which others would see"),
        (["--env", "URL"], "URL 'https://...@host' holds a password"),
        (["--driver-cpus", "-1"], "driver_cpus is -1, expected at least 0"),
        (["--driver-gpu", "1"], "did you mean '--driver-gpus'?"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str],
    message: str,
    answering: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_API_KEY", "planted")
    monkeypatch.setenv("URL", "https://me:planted@host")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--address", answering(ray.__version__), *options, "verify", "x"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert message in told.err
    assert "planted" not in told.err + told.out


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


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Authentication required: Unauthorized: Missing authentication token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/token"}, "RAY_AUTH_TOKEN_PATH is set but file cannot be opened or is empty: /no/token"),
        ({"RAY_AUTH_TOKEN": "planted" * 8}, "Authentication failed: Forbidden: Invalid authentication token"),
    ],
    ids=["none", "no file", "wrong"],
)
def test_without_the_clusters_token_is_one_line(head: dict[str, str], given: dict[str, str], reason: str) -> None:
    done = submit(head | given, "verify", "x")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"({reason}), expected the cluster's own token; set RAY_AUTH_MODE=token" in line
    assert "planted" not in line + done.stdout


def test_a_token_that_is_taken_no_more_is_one_line(answering: Callable[..., str]) -> None:
    """The cluster was started anew, with another, while its job was followed."""
    client = job_server(answering(ray.__version__, status_of_others=403))
    for about in (follow, status, stop):
        with pytest.raises(
            InputError, match=r"takes no request from here \(Authentication failed: .*\), expected the cluster's own"
        ):
            about(client, "raysubmit_1")
    with pytest.raises(InputError, match="expected the cluster's own token"):
        begin(client, ["verify", "x"])


def test_a_cluster_of_another_ray_is_refused(answering: Callable[..., str]) -> None:
    done = submit({**os.environ}, "--address", answering("2.61.0"), "verify", "x")
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
