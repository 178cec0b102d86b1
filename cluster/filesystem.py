"""Ray Train writes through pyarrow: the same URL as one of its file systems."""

import fsspec
import pyarrow.fs

from pipeline import storage

ATTEMPTS = 12
"""A request that fails is tried again for more than a minute: a checkpoint is worth as much. pyarrow's own S3 forgets such a
setting on its way to the workers (26)."""


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """Return (file system, path) for a folder; None as file system means the local one."""
    if storage.is_local(url):
        return None, storage.filesystem(storage.absolute(url))[1]
    patient = {"config_kwargs": {**storage.S3_OPTIONS["config_kwargs"], "retries": {"mode": "standard", "max_attempts": ATTEMPTS}}}
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("s3", **patient))), url.removeprefix("s3://")
