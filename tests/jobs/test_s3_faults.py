"""A store that stumbles: a real S3-protocol server behind a proxy that injects faults. Right data or one clear line."""

import http.client
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from cluster.optimiser import OptimiserConfig
from cluster.run import Run
from pipeline import storage
from pipeline.archive import Archive, create_archive
from pipeline.errors import InputError
from pipeline.sensors import load_sensor
from tests.pipeline.test_archive import GRID, make_archive, make_tiles

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `behind`; each one whose method is `method` and whose path has `where` takes the next fault."""

    daemon_threads = True

    def __init__(self, behind: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = behind
        self.lock = threading.Lock()
        self.calm()

    def calm(self) -> None:
        self.faults: deque[str] = deque()
        self.method, self.where, self.for_ever, self.states_checksum = "GET", "", "", True
        self.passed_bytes = 0

    def expect(self, method: str, where: str, *faults: str) -> None:
        self.method, self.where, self.faults = method, where, deque(faults)

    def fault(self, method: str, path: str) -> str:
        with self.lock:
            if method != self.method or self.where not in path:
                return ""
            return self.faults.popleft() if self.faults else self.for_ever


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        fault = self.server.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "503":
            self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        if fault == "403":
            self.answer(403, [("Content-Type", "application/xml")], DENIED)
            return
        if fault == "lost":  # the request never arrives
            self.cut()
            return
        time.sleep(1.5 if fault == "slow" else 0)
        connection = http.client.HTTPConnection(*self.server.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        content = response.read()
        connection.close()
        self.server.passed_bytes += len(body) + len(content)
        if fault == "unheard":  # it arrives, its answer does not
            self.cut()
            return
        dropped = (
            "content-length",
            "transfer-encoding",
            "connection",
            *(() if self.server.states_checksum else ("x-amz-checksum",)),
        )
        headers = [(key, value) for key, value in response.getheaders() if not key.lower().startswith(dropped)]
        if fault == "flipped":
            content = content[:9] + bytes([content[9] ^ 1]) + content[10:]
        if fault == "short":
            content = content[: len(content) // 2]
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.answer(response.status, headers, content, length, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None, fault: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if fault in ("truncated", "reset"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.cut(reset=fault == "reset")
        elif self.command != "HEAD":
            self.wfile.write(content)

    def cut(self, *, reset: bool = True) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def store() -> Iterator[Proxy]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port())
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patched:
        for key, value in {**settings, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}"}.items():
            patched.setenv(key, value)
        S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="stumbling")  # not that of test_s3: moto keeps one state a process
        yield proxy
    S3FileSystem.clear_instance_cache()
    proxy.shutdown()
    server.stop()


@pytest.fixture
def archive(store: Proxy) -> Iterator[Archive]:
    store.calm()
    made = create_archive("s3://stumbling/archive", GRID, {"sentinel1_grd": load_sensor("sentinel1_grd")}, {})
    if "s_0" not in made.published():
        made.publish("s_0", "train", make_tiles(4), "inputs")
    yield made
    store.calm()


@pytest.mark.parametrize("fault", ["503", "slow", "truncated", "reset", "lost"])
def test_a_read_gets_over_a_burst(archive: Archive, store: Proxy, fault: str) -> None:
    faults = [fault] * (1 if fault == "slow" else 2)  # a slow answer is an answer: it is not asked for again
    store.expect("GET", "pixels/c/0", *faults)
    stored, _ = archive.read("s_0", "sentinel1_grd", np.arange(4))
    assert not store.faults, "the faults were not met"
    assert np.array_equal(stored, np.stack([t.pixels for t in make_tiles(4)]))
    store.expect("GET", "catalog/s_0", *faults)
    assert len(archive.catalog()) == 4
    assert not store.faults


@pytest.mark.parametrize("states_checksum", [True, False])
@pytest.mark.parametrize("fault", ["short", "flipped"])
def test_wrong_bytes_are_never_pixels(archive: Archive, store: Proxy, fault: str, states_checksum: bool) -> None:
    """The length is as stated. Where the store gives no checksum of its own, only those of the tiles can know."""
    store.expect("GET", "pixels/c/0", fault)
    store.states_checksum = states_checksum
    found = "(?i:checksum)" if states_checksum else "is damaged"
    with pytest.raises(InputError, match=rf"s_0\.zarr/sentinel1_grd/pixels.*{found}"):
        archive.read("s_0", "sentinel1_grd", np.arange(4))
    assert len(archive.read("s_0", "sentinel1_grd", np.arange(4))[0]) == 4


@pytest.mark.parametrize(("fault", "where"), [("503", ""), ("truncated", ""), ("lost", ""), ("503", "pixels/c/0")])
def test_a_store_that_never_recovers_is_one_line(archive: Archive, store: Proxy, fault: str, where: str) -> None:
    store.for_ever, store.where = fault, where
    with pytest.raises(
        InputError, match=r"cannot \w+.* 's3://stumbling/archive/.*' after several tries \(.+\); check the store"
    ) as caught:
        archive.read("s_0", "sentinel1_grd", np.arange(4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["503", "slow", "lost", "unheard"])
def test_a_shard_is_published_over_faults(archive: Archive, store: Proxy, fault: str, tmp_path: Path) -> None:
    """The same digest as a local archive: nothing lost, doubled or half-written."""
    here = make_archive(tmp_path / "a")
    here.publish("s_1", "test", make_tiles(4, 7), "inputs")
    store.expect("PUT", "s_1", fault, fault, fault)
    archive.publish("s_1", "test", make_tiles(4, 7), "inputs")
    assert not store.faults
    assert archive.whole_rows("s_1") == here.whole_rows("s_1")
    archive.withdraw("s_0")
    assert archive.digest() == here.digest()


def test_a_failed_upload_is_not_published(archive: Archive, store: Proxy) -> None:
    store.method, store.where, store.for_ever = "PUT", "s_2.zarr/sentinel1_grd/valid/c", "503"
    with pytest.raises(InputError, match=r"cannot write 's3://stumbling/archive/shards/s_2\.zarr' after several tries"):
        archive.publish("s_2", "val", make_tiles(2), "inputs")
    store.calm()
    assert "s_2" not in archive.published()
    with pytest.raises(InputError, match="s_2"):
        archive.republish("s_2")
    archive.publish("s_2", "val", make_tiles(2), "inputs")
    assert archive.whole_rows("s_2")
    archive.withdraw("s_2")


def test_of_many_creators_one_wins(store: Proxy) -> None:
    store.calm()
    won = []
    threads = [
        threading.Thread(target=lambda n=n: won.append(n) if storage.create_bytes("s3://stumbling/one", b"%d" % n) else None)
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read_bytes("s3://stumbling/one") == b"%d" % won[0]
    assert len(won) == 1


def test_a_run_that_may_not_write_ends_before_it_begins(store: Proxy) -> None:
    store.calm()
    store.method, store.where, store.for_ever = "PUT", "/runs/", "403"
    began = time.monotonic()
    with pytest.raises(InputError, match=r"not allowed to write 's3://stumbling/runs/denied.*Access Denied") as caught:
        Run("s3://stumbling/runs/denied", "pretrain").begin(OptimiserConfig(), {})
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20, "what is not allowed is not tried again and again"
    store.calm()
    assert storage.names("s3://stumbling/runs/denied") == []


def test_of_a_long_record_new_lines_alone_travel(store: Proxy) -> None:
    """Whichever its length: in full while it is short, below or above the 5 MiB from which a store copies parts."""
    store.calm()
    url, lines = "s3://stumbling/metrics.jsonl", ["0", "1" * 3_000_000, "2" * 3_000_000]
    for line in lines:
        storage.append_line(url, line)
    store.passed_bytes = 0
    for fault in ("", "503", "lost", "unheard"):
        if fault:
            store.expect("POST", "uploadId", fault)
        lines.append(f"new {fault}")
        storage.append_line(url, lines[-1])
        assert not store.faults
    assert store.passed_bytes < 50_000
    assert storage.read_bytes(url).decode().splitlines() == lines
