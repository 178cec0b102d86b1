"""Models that lie elsewhere: copied once into the user's cache, and used from there as long as they are what was copied.

Decides which URLs are taken and how a copy is checked: config.json states the SHA-256 of the weights, and is asked for anew each
time. Weights are safetensors, so nothing that is copied is ever executed.
"""

import hashlib
import importlib
import json
import os
import tempfile
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

from models.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LARGEST = {CONFIG: 2**24, WEIGHTS: 2**35}
"""Bytes above which a file is refused: no configuration is that long, no encoder that large (32 GiB)."""
TIMEOUT_S = 60
PIECE = 2**20


def cache_folder() -> Path:
    """Return where copies are kept: $XDG_CACHE_HOME/terraloom, else ~/.cache/terraloom."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "terraloom"


def local_folder(url: str) -> Path:
    """Return a local folder with the model at `url`; a copy is used without a word only while the source says it is the same.

    Raise InputError if the model cannot be had, is too large, or is not what its config.json says.
    """
    url = url.rstrip("/")
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:32]
    try:
        content = _read(url, CONFIG)
    except OSError as error:
        if (folder / CONFIG).exists() and _is_whole(folder):
            warnings.warn(f"{url} cannot be reached ({_reason(error)}); the copy in {folder} is used", stacklevel=3)
            return folder
        raise InputError(f"cannot read {url}/{CONFIG} ({_reason(error)}); give the URL of a model's folder") from None
    digest = _stated(content, url)
    if (folder / CONFIG).exists() and (folder / CONFIG).read_bytes() == content and _is_whole(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _copy(url, folder, digest)
    except OSError as error:
        raise InputError(f"cannot read {url}/{WEIGHTS} ({_reason(error)}); try again, or copy the folder by hand") from None
    _replace(folder / CONFIG, content)
    return folder


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    """Return whether the weights in `folder` are those that its configuration names."""
    path = folder / WEIGHTS
    return path.exists() and digest_of(path) == json.loads((folder / CONFIG).read_bytes()).get("sha256")


def _stated(content: bytes, url: str) -> str:
    try:
        digest = json.loads(content).get("sha256")
    except (ValueError, AttributeError):
        digest = None
    if not isinstance(digest, str):
        raise InputError(f"{url}/{CONFIG} states no sha256 of its weights, expected a model saved by this release; save it again")
    return digest


def _read(url: str, name: str) -> bytes:
    with _opened(f"{url}/{name}") as source:
        content = source.read(LARGEST[name] + 1)
    if len(content) > LARGEST[name]:
        raise InputError(f"{url}/{name} is larger than {LARGEST[name]} bytes; give the URL of a model's folder")
    return content


def _copy(url: str, folder: Path, digest: str) -> None:
    """Copy the weights; nothing is left of a copy that is not what was promised."""
    found, count = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as target:
        try:
            with _opened(f"{url}/{WEIGHTS}") as source:
                while piece := source.read(PIECE):
                    count += len(piece)
                    if count > LARGEST[WEIGHTS]:
                        raise InputError(f"{url}/{WEIGHTS} is larger than {LARGEST[WEIGHTS]} bytes; expected an encoder's weights")
                    found.update(piece)
                    target.write(piece)
            if found.hexdigest() != digest:
                raise InputError(f"{url}/{WEIGHTS} has SHA-256 {found.hexdigest()}, {CONFIG} says {digest}; it was cut or changed")
        except BaseException:
            os.unlink(target.name)
            raise
    os.replace(target.name, folder / WEIGHTS)


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as target:
        target.write(content)
    os.replace(target.name, path)


def _opened(url: str) -> IO[bytes]:
    scheme = urlparse(url).scheme
    if scheme == "https":
        return urllib.request.urlopen(url, timeout=TIMEOUT_S)
    if scheme == "s3":
        return _filesystem().open(url, "rb")
    raise InputError(f"cannot read '{url}': scheme '{scheme}' is not known; give a path, an https:// or an s3:// URL")


def _filesystem() -> Any:
    """Return s3fs's file system: the core install has none."""
    try:
        return importlib.import_module("s3fs").S3FileSystem()
    except ModuleNotFoundError:
        raise InputError("an s3:// URL needs s3fs; pip install s3fs, or give an https:// URL") from None


def _reason(error: OSError) -> str:
    return " ".join(str(getattr(error, "reason", error)).split())
