"""Objects of which pixels are read, fast: local files by the threads that decode, objects of a bucket through obstore.

Everything else is read through `storage`. Endpoint, region, credentials and certificates are the ones that botocore,
and with it `storage`, finds.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Protocol

import numpy as np

from pipeline import storage
from pipeline.errors import InputError

# Like `storage`: a request is tried again, waiting longer each time, for about half a minute, or two.
RETRIES: Any = {"max_retries": 10, "retry_timeout": timedelta(seconds=30)}
PATIENT_RETRIES: Any = {"max_retries": 20, "retry_timeout": timedelta(seconds=120)}
# No bound on the whole request: a shard on a slow link may take minutes.
CLIENT: Any = {"connect_timeout": timedelta(seconds=10), "read_timeout": timedelta(seconds=20), "timeout": timedelta(hours=1)}
CREDENTIALS_TTL = timedelta(minutes=5)


class StoredObject(Protocol):
    """An object that is there while it is open; threads may share it."""

    size: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return bytes [start, stop), as far as there are any, as uint8, good until this thread reads again."""
        ...


@contextmanager
def opened(url: str) -> Iterator[StoredObject]:
    """Yield the object at `url`: a local file, or any other fetched whole by one request."""
    if storage.is_local(url):
        with open(storage.filesystem(url)[1], "rb", buffering=0) as file:
            yield _LocalFile(file.fileno())
    else:
        yield _Content(_get(url) if url.startswith("s3://") else storage.read_bytes(url))


class _LocalFile:
    """Read in parts, each into memory that its thread has used before and the cache still holds.

    Reading 30 MB whole into fresh memory costs as much as decoding a third of it, half of that page faults.
    """

    _memory = threading.local()

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)  # large requests, also where tiles are shuffled

    def read(self, start: int, stop: int) -> np.ndarray:
        start = max(start, 0)
        size = max(0, min(stop, self.size) - start)
        buffer: np.ndarray | None = getattr(self._memory, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = self._memory.buffer = np.empty(size + size // 4, np.uint8)
        filled = 0
        while filled < size and (count := os.preadv(self._descriptor, [buffer.data[filled:size]], start + filled)):
            filled += count
        return buffer[:filled]


class _Content:
    def __init__(self, content: Any):
        self._content = np.frombuffer(content, np.uint8)
        self.size = len(self._content)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._content[max(start, 0) : stop]


def _get(url: str) -> Any:
    import obstore  # here and not above: a local archive does without

    bucket, _, key = url.removeprefix("s3://").partition("/")
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with storage.one_line("read", url):
        return obstore.get(_store(bucket, environment, storage.is_patient()), key).bytes()


@cache
def _store(bucket: str, environment: tuple[tuple[str, str], ...], is_patient: bool) -> Any:
    """Return the obstore of `bucket`, one for each AWS environment that this process has had."""
    from botocore.session import get_session
    from obstore.store import S3Store

    session = get_session()
    region = dict(environment).get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
    endpoint = session.create_client("s3", region_name=region).meta.endpoint_url
    config: Any = {"region": region, "endpoint": endpoint}
    options: Any = CLIENT | {"allow_http": endpoint.startswith("http://")}
    if bundle := session.get_config_variable("ca_bundle"):
        with open(bundle, "rb") as file:
            options["root_certificate"] = file.read()
    retries, credentials = PATIENT_RETRIES if is_patient else RETRIES, _credentials(session, bucket)
    return S3Store(bucket, config=config, client_options=options, retry_config=retries, credential_provider=credentials)


def _credentials(session: Any, bucket: str) -> Callable[[], Any]:
    found = session.get_credentials()
    if found is None:
        raise InputError(
            f"no credentials for 's3://{bucket}'; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile or role"
        )

    def frozen() -> dict[str, Any]:
        """What the session holds now; it renews a role's keys by itself."""
        keys = found.get_frozen_credentials()
        expires_at = datetime.now(UTC) + CREDENTIALS_TTL
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": expires_at,
        }

    return frozen
