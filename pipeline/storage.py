"""Files by URL: the same few operations on a local folder and on `s3://`.

Decides how things become visible all at once: a small file is replaced whole, a folder is moved or uploaded under its
final name. Credentials and endpoint come from the usual environment (AWS_*), never from here.
"""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of `url` and the path within it."""
    try:
        return fsspec.url_to_fs(str(url))
    except ValueError as error:
        raise InputError(f"cannot use '{url}': {error}; give a local path or an s3:// URL") from None


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """Return `url` such that it means the same in another working directory."""
    return os.path.abspath(url) if is_local(url) and "://" not in str(url) else str(url)


def join(url: str, *parts: str) -> str:
    return "/".join([str(url).rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.exists(path)


def names(url: str) -> list[str]:
    """Return the sorted names directly inside folder `url`; a missing folder is empty."""
    fs, path = filesystem(url)
    fs.invalidate_cache(path)
    if not fs.exists(path):
        return []
    return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))


def remove(url: str) -> None:
    """Remove a file or folder if it is there."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def write_bytes(url: str, content: bytes) -> None:
    """Replace the file at `url`: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, content)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
    Path(temporary).write_bytes(content)
    os.replace(temporary, path)


def append_line(url: str, line: str) -> None:
    """Append `line` to the text file at `url`."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(line + "\n")
    else:
        before = fs.cat_file(path) if fs.exists(path) else b""
        fs.pipe_file(path, before + line.encode() + b"\n")


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_json(url: str, content: Any) -> None:
    write_bytes(url, json.dumps(content, indent=1, default=str).encode() + b"\n")


@contextmanager
def staged_folder(url: str) -> Iterator[Path]:
    """Yield a private local folder; on leaving without error it becomes the folder at `url`, replacing any other."""
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    if local:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    # Beside its destination where possible, so that publishing is a rename; the dot keeps it out of listings.
    parent = os.path.dirname(path) if local else tempfile.gettempdir()
    prefix = f".{os.path.basename(path)}.{socket.gethostname()}."
    _remove_abandoned(Path(parent), prefix)
    staging = Path(parent) / f"{prefix}{os.getpid()}.{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        yield staging
        remove(url)
        if local:
            os.replace(staging, path)
        else:
            fs.put(str(staging) + "/", path, recursive=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove what killed writers of the same folder on this machine left behind."""
    for left in parent.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).split(".")[0]
        if not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield a local path with the content of folder `url`; for a local folder that is the folder itself."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "copy"
        fs.get(path.rstrip("/") + "/", str(target), recursive=True)
        yield target


def size(url: str) -> int:
    """Return the bytes of all files under `url`."""
    fs, path = filesystem(url)
    return int(sum(entry["size"] for entry in fs.find(path, detail=True).values()))


def folder_digest(url: str) -> str:
    """Return the SHA-256 over the names and contents of all files under `url`, in name order."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    digest = hashlib.sha256()
    root = path.rstrip("/")
    for file in sorted(fs.find(root)):
        digest.update(file[len(root) :].encode())
        digest.update(fs.cat_file(file))
    return digest.hexdigest()
