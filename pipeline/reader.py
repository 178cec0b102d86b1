"""Decode tiles straight from a shard's bytes: one read of the object, then only the tiles asked for.

Reads the one layout that `archive` writes (Zarr v3, one sharded chunk an array, one tile an inner chunk, blosc);
zarr-python is the oracle in the tests. About five times faster than reading through zarr-python on two cores.
"""

import json
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numcodecs import blosc

from pipeline import storage
from pipeline.errors import InputError

blosc.use_threads = False  # the callers are the parallelism
CRC_BYTES = 4
EMPTY = np.iinfo(np.uint64).max


def read_rows(array_url: str, rows: np.ndarray) -> np.ndarray:
    """Return tiles `rows` (in that order) of the sharded array at `array_url`, in its stored dtype."""
    shape, dtype, fill, is_checked = _layout(array_url)
    rank = len(shape)
    content = storage.read_bytes(storage.join(array_url, "c", *["0"] * rank))
    end = len(content) - CRC_BYTES
    footer = content[end - 16 * shape[0] : end]
    if len(footer) != 16 * shape[0] or crc32c(footer) != int.from_bytes(content[end:], "little"):
        raise _damaged(array_url, "its index")
    index = np.frombuffer(footer, "<u8").reshape(shape[0], 2)
    out = np.empty((len(rows), *shape[1:]), dtype)
    view = memoryview(content)
    for target, row in enumerate(rows):
        start, size = (int(n) for n in index[row])
        if start == EMPTY:
            out[target] = fill
        else:
            chunk = view[start : start + size]
            if is_checked:
                chunk, stated = chunk[:-CRC_BYTES], chunk[-CRC_BYTES:]
                if crc32c(bytes(chunk)) != int.from_bytes(stated, "little"):
                    raise _damaged(array_url, f"tile {row}")
            blosc.decompress(chunk, out[target])
    return out


def _damaged(array_url: str, part: str) -> InputError:
    return InputError(
        f"shard is damaged: {part} of '{array_url}' fails its checksum; see 'terraloom verify' and 'terraloom repair'"
    )


def _layout(array_url: str) -> tuple[tuple[int, ...], np.dtype, Any, bool]:
    meta = json.loads(storage.read_bytes(storage.join(array_url, "zarr.json")))
    shape, codec = tuple(meta["shape"]), meta["codecs"][0]
    inner = codec.get("configuration", {}).get("chunk_shape")
    if codec["name"] != "sharding_indexed" or tuple(meta["chunk_grid"]["configuration"]["chunk_shape"]) != shape:
        raise InputError(f"'{array_url}' is not one sharded chunk; expected a shard written by Terraloom")
    if inner is None or tuple(inner) != (1, *shape[1:]):
        raise InputError(f"'{array_url}' has inner chunks {inner}, expected one tile each; expected a shard written by Terraloom")
    is_checked = codec["configuration"]["codecs"][-1]["name"] == "crc32c"
    return shape, np.dtype(meta["data_type"]), meta["fill_value"], is_checked
