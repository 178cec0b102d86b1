"""A store that cannot be reached for a minute: `python -m tests.bench.bench_outage ARCHIVE [--seconds 60]`.

Archive and run are in a real S3-protocol server on this machine, behind a door. One run is left alone; in another the door is
shut for a while in the middle: what is open is cut, what comes is refused. At the end every step's loss is compared.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "earth"


class Door:
    """Passes connections on to `behind` while it is open."""

    def __init__(self, behind: tuple[str, int]):
        self._behind, self._passing = behind, set[socket.socket]()
        self._open()

    def _open(self, port: int = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", port))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                one, other = listening.accept()[0], socket.create_connection(self._behind)
                self._passing |= {one, other}
                for source, target in ((one, other), (other, one)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._passing.discard(end)

    def shut(self, seconds: float) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for end in list(self._passing):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._open(self.port)


def upload(client: Any, archive: Path) -> None:
    for path in sorted(archive.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"archive/{path.relative_to(archive)}")


def lines(client: Any, key: str) -> list[dict[str, Any]]:
    try:
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()
    except client.exceptions.NoSuchKey:
        return []
    return [json.loads(line) for line in body.splitlines()]


def run(name: str, options: argparse.Namespace, client: Any, door: Door, environment: dict[str, str]) -> float:
    """Train; where `name` says so, shut the door once half of the steps are done. Return the seconds of the whole command."""
    settings = ["--num-steps", str(options.steps), "--checkpoint-every", str(options.every), "--health-every", "0"]
    command = [sys.executable, "-m", "jobs.cli", "pretrain", options.recipe, f"s3://{BUCKET}/archive", f"s3://{BUCKET}/{name}"]
    begin = time.monotonic()
    process = subprocess.Popen([*command, *settings], env=environment, stdout=subprocess.DEVNULL)
    if name == "cut":
        while not (found := lines(client, f"{name}/metrics.jsonl")) or found[-1]["step"] < options.steps // 2:
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode} before the door was shut")
            time.sleep(0.5)
        door.shut(options.seconds)
    if process.wait():
        raise SystemExit(f"terraloom pretrain ended with {process.returncode}")
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--recipe", default="mae_tiny")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    options = parser.parse_args()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    behind = server.get_host_and_port()
    door = Door(behind)
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
    environment = {**os.environ, **keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{door.port}"}
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{behind[0]}:{behind[1]}",
        region_name="us-east-1",
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
    )
    client.create_bucket(Bucket=BUCKET)
    upload(client, options.archive)
    seconds = {name: run(name, options, client, door, environment) for name in ("whole", "cut")}
    ends = [{record["step"]: record["loss"] for record in lines(client, f"{name}/metrics.jsonl")} for name in seconds]
    apart = max(abs(ends[0][step] - ends[1][step]) / abs(ends[0][step]) for step in ends[0])
    events = [event["event"] for event in lines(client, "cut/events.jsonl") if event["event"] != "checkpoint"]
    print(
        f"door shut for {options.seconds:g} s: {seconds['whole']:.0f} s became {seconds['cut']:.0f} s; events: {', '.join(events)}"
    )
    print(f"steps: {len(ends[0])} and {len(ends[1])}; largest relative difference of a step's loss: {apart:.2g}")
    server.stop()


if __name__ == "__main__":
    main()
