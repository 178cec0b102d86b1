"""Ray Train writes through pyarrow: the same URL as one of its file systems."""

import os

import pyarrow.fs

from pipeline import storage


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """Return (file system, path) for a folder; None as file system means the local one."""
    if storage.is_local(url):
        return None, storage.filesystem(storage.absolute(url))[1]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {key: value for key, value in (("endpoint_override", endpoint), ("region", region)) if value}
    return pyarrow.fs.S3FileSystem(**options), url.removeprefix("s3://")
