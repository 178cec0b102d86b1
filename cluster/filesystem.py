"""Ray Train writes through pyarrow: the same URL as one of its file systems."""

import fsspec
import pyarrow.fs

from pipeline import storage


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem | None, str]:
    """Return (file system, path) for a folder; None as file system means the local one.

    A request that fails is tried again for more than a minute; pyarrow's own S3 forgets such a setting on its way to workers (26).
    """
    if storage.is_local(url):
        return None, storage.filesystem(storage.absolute(url))[1]
    with storage.patient():
        patient = storage.s3_options()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("s3", **patient))), url.removeprefix("s3://")
