"""Files by URL: the same few operations on a local folder and on `s3://`.

Decides how things become visible all at once: a small file is replaced or created whole, a folder is moved or uploaded
under its final name; and that a store which stays unreachable is one clear line. Credentials and endpoint come from the
usual environment (AWS_*), never from here.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import InputError

ATTEMPTS, PATIENT_ATTEMPTS = 3, 12
"""How often a request is made, at most: for about half a minute, or a minute and a half."""
_attempts = ATTEMPTS
STAGING_SUFFIX = ".staged"
STALE_SECONDS = 3600.0


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of `url` and the path within it."""
    try:
        return fsspec.url_to_fs(str(url), **(s3_options() if str(url).startswith("s3://") else {}))
    except ValueError as error:
        raise InputError(f"cannot use '{url}': {error}; give a local path or an s3:// URL") from None


def s3_options() -> dict[str, Any]:
    """Return what s3fs is told: new each time, since botocore (1.43) changes what it is given."""
    retries = {"mode": "standard", "max_attempts": _attempts}  # waiting longer each time
    return {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": retries}}


@contextmanager
def patient() -> Iterator[None]:
    """Inside, have a request of this process tried again for more than a minute: what trains for days outlasts a store's outage.

    Elsewhere somebody is waiting who may have mistyped an address.
    """
    global _attempts
    before, _attempts = _attempts, PATIENT_ATTEMPTS
    try:
        yield
    finally:
        _attempts = before


def is_patient() -> bool:
    return _attempts == PATIENT_ATTEMPTS


def _store_errors() -> tuple[type[Exception], ...]:
    import aiohttp  # here and not above: a local archive needs neither
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.exceptions import BaseError

    return OSError, BotoCoreError, ClientError, aiohttp.ClientError, BaseError


@contextmanager
def one_line(action: str, url: str) -> Iterator[None]:
    """Turn what is left of a store's failure after all retries into an InputError; a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except _store_errors() as error:
        if is_local(url):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, PermissionError):
            raise InputError(f"not allowed to {action} '{url}' ({cause}); check credentials and the store's policy") from None
        raise InputError(f"cannot {action} '{url}' after several tries ({cause}); check the store and run this again") from None


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """Return `url` such that it means the same in another working directory."""
    return os.path.abspath(url) if is_local(url) and "://" not in str(url) else str(url)


def join(url: str, *parts: str) -> str:
    return "/".join([str(url).rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    with one_line("look for", url):
        fs.invalidate_cache(path)
        return fs.exists(path)


def stamp(url: str) -> str | None:
    """Return size and ETag, else time of change, of the file at `url`: another after it was replaced; None where there is none."""
    fs, path = filesystem(url)
    try:
        with one_line("look for", url):
            facts = fs.info(path)
    except FileNotFoundError:
        return None
    changed = next((facts[key] for key in ("ETag", "mtime", "LastModified") if facts.get(key)), None)
    return f"{facts.get('size')} {changed}"


def names(url: str) -> list[str]:
    """Return the sorted names directly inside folder `url`; a missing folder is empty."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        with one_line("list", url):
            return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def remove(url: str) -> None:
    """Remove a file or folder if it is there."""
    fs, path = filesystem(url)
    with one_line("remove", url):
        fs.invalidate_cache()
        if fs.exists(path):
            fs.rm(path, recursive=True)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    with one_line("read", url):
        return fs.cat_file(path)


def write_bytes(url: str, content: bytes) -> None:
    """Replace the file at `url`: a reader sees the old content or the new, never a part."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        with one_line("write", url):
            fs.pipe_file(path, content)
        return
    temporary = _staging_path(path)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def copy_folder(source: str, target: str) -> None:
    """Copy a folder of files that nobody changes to `target`, in the same store, replacing what is there.

    Where the store can, nothing travels: names are added to local files, and S3 copies its objects itself.
    """
    fs, path = filesystem(source)
    if isinstance(fs, LocalFileSystem):
        with staged_folder(target) as folder:
            shutil.copytree(path, folder, copy_function=_link, dirs_exist_ok=True)
        return
    remove(target)
    with one_line("write", target):
        fs.copy(path.rstrip("/") + "/", filesystem(target)[1].rstrip("/") + "/", recursive=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without
        shutil.copy2(source, target)


def create_bytes(url: str, content: bytes) -> bool:
    """Write the file at `url` unless there is one: of several that try at once, one succeeds. Return whether it was this one."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        if exists(url):
            return False
        try:
            with one_line("write", url):
                fs.pipe_file(path, content, mode="create")  # a conditional put
        except (FileExistsError, InputError):
            if exists(url):
                return False
            raise
        return True
    temporary = _staging_path(path)
    temporary.write_bytes(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def append_line(url: str, line: str) -> None:
    """Append `line` to the text file at `url`. To more than 5 MiB on S3 the line alone travels: the store copies what was there."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(line + "\n")
    else:
        with one_line("write", url):
            fs.invalidate_cache(path)
            content = line.encode() + b"\n"
            size = len(content) + (fs.info(path)["size"] if fs.exists(path) else 0)
            try:
                with fs.open(path, "ab") as file:
                    file.write(content)
            except _store_errors() as error:
                # The store may have done it and its answer be lost: asked again it knows of no such upload.
                fs.invalidate_cache(path)
                if not fs.exists(path) or fs.info(path)["size"] != size:
                    raise OSError(str(error)) from None


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_json(url: str, content: Any) -> None:
    write_bytes(url, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    return json.dumps(content, indent=1, default=str).encode() + b"\n"


def _staging_path(path: str) -> Path:
    """Return a new hidden path beside local `path`, so that publishing is a rename."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    return Path(folder) / f".{name}.{uuid.uuid4().hex[:8]}{STAGING_SUFFIX}"


@contextmanager
def staged_folder(url: str) -> Iterator[Path]:
    """Yield a private local folder; on leaving without error it becomes the folder at `url`, replacing any other.

    A folder has one writer at a time: what a killed one left staged is removed first, and one that is still alive then
    fails instead of publishing late.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    upload_from = os.path.join(tempfile.gettempdir(), f"terraloom-{hashlib.sha256(path.encode()).hexdigest()[:16]}")
    staging = _staging_path(path if local else os.path.join(upload_from, "folder"))
    for left in staging.parent.glob(f".{glob.escape(os.path.basename(path) if local else 'folder')}.*{STAGING_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        remove(url)
        if local:
            os.replace(staging, path)
        else:
            with one_line("write", url):
                fs.put(str(staging) + "/", path, recursive=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not local:
            with suppress(OSError):
                os.rmdir(upload_from)


def remove_stale(url: str) -> tuple[int, int]:
    """Remove what killed writers left staged in local folder `url`; return how many, and how many are too young to be sure."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        return 0, 0  # an upload is staged on the uploading machine and removed by the next one
    removed = young = 0
    for left in Path(path).glob(f".*{STAGING_SUFFIX}"):
        newest = max((p.stat().st_mtime for p in (left, *left.rglob("*")) if p.exists()), default=0.0)
        if time.time() - newest < STALE_SECONDS:
            young += 1
        elif left.is_dir():
            shutil.rmtree(left)
            removed += 1
        else:
            left.unlink(missing_ok=True)
            removed += 1
    return removed, young


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Yield a local path with the content of folder `url`; for a local folder that is the folder itself."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "copy"
        with one_line("read", url):
            fs.get(path.rstrip("/") + "/", str(target), recursive=True)
        yield target


def files(url: str) -> dict[str, int]:
    """Return {path below folder `url`: size in bytes} of all its files, in name order."""
    fs, path = filesystem(url)
    with one_line("list", url):
        fs.invalidate_cache()
        found = fs.find(path.rstrip("/"), detail=True)
    return {name[len(path.rstrip("/")) + 1 :]: int(found[name]["size"]) for name in sorted(found)}


def folder_digest(url: str, without: str = "") -> str:
    """Return the SHA-256 over the names and contents of all files under `url` but `without`, in name order."""
    digest = hashlib.sha256()
    for name in files(url):
        if name != without:
            digest.update(f"/{name}".encode())
            digest.update(read_bytes(join(url, name)))
    return digest.hexdigest()
