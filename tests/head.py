"""A Ray cluster of its own on this machine, as operators start one: a head with its job server and token, and more nodes."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

ATTEMPTS = 3
NODE = ["--block", "--object-store-memory", "150000000"]


class Cluster:
    """A head and nodes, each with a raylet of its own. `environment` is that in which to talk to it; `address` that of its GCS.

    nodes: CPUs of each node beside the head; given: what the nodes' environment has besides, such as keys.
    """

    def __init__(self, cpus: int, nodes: tuple[int, ...] = (), given: dict[str, str] | None = None) -> None:
        # A short path, as it holds sockets, and one that no other Ray of this machine knows.
        self.folder = Path(tempfile.mkdtemp(prefix="ray"))
        self.token = secrets.token_hex(32)
        (self.folder / "token").write_text(self.token)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
        }
        self._given = {"RAY_GRACEFUL_SHUTDOWN_TIMEOUT_S": "5", **(given or {})}
        self._processes: list[subprocess.Popen[str]] = []
        for attempt in range(ATTEMPTS):
            ports = free_ports(("port", "dashboard-port", "ray-client-server-port"))
            self.address = f"127.0.0.1:{ports['port']}"
            if self._starts(["--head", "--num-cpus", str(cpus), "--temp-dir", str(self.folder), *flags(ports)], attempt):
                break
        self.environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{ports['dashboard-port']}"
        for number in nodes:
            self.add(number)

    def add(self, cpus: int) -> None:
        """Start one more node and wait until it has joined."""
        for attempt in range(ATTEMPTS):
            if self._starts(["--address", self.address, "--num-cpus", str(cpus)], attempt):
                return

    def processes(self) -> list[psutil.Process]:
        """Return all that runs on the cluster: drivers of jobs live on for a while when their raylet is gone."""
        found = []
        for process in self._processes:
            if process.poll() is None:
                node = psutil.Process(process.pid)
                found += [*node.children(recursive=True), node]
        return found

    def kill(self) -> None:
        """Lose all machines at once."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for started in self._processes:
            started.wait(timeout=60)

    def stop(self) -> None:
        """End the cluster and remove its folder."""
        running = self.processes()
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                continue
        for left in running:
            try:
                left.kill()
            except psutil.NoSuchProcess:
                continue
        shutil.rmtree(self.folder, ignore_errors=True)

    def _starts(self, arguments: list[str], attempt: int) -> bool:
        """Start a node and return whether it is up: Ray (2.60) gives a raylet 30 s, which a busy machine may not keep."""
        own = flags(free_ports(("dashboard-agent-listen-port",)))
        command = [Path(sys.executable).parent / "ray", "start", *NODE, *arguments, *own]
        environment = self.environment | self._given
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._processes.append(process)
        told: list[str] = []
        assert process.stdout
        for line in process.stdout:
            told.append(line)
            if "Ray runtime started" in line:
                # Nobody reads any more; a full pipe would stop the node.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return True
        if attempt == ATTEMPTS - 1:
            self.stop()
            raise RuntimeError("Ray did not start: " + "".join(told[-20:]))
        return False


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """Return one free port per name: a Ray head's default ports may belong to another Ray on this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return dict(zip(names, ports, strict=True))


def flags(ports: dict[str, int]) -> list[str]:
    return [f"--{name}={port}" for name, port in ports.items()]
