"""Decode tiles straight from a shard's bytes: one read of the object, then only the tiles asked for.

Reads the one layout that `archive` writes (Zarr v3, one sharded chunk an array, one tile an inner chunk, blosc then
crc32c) and gives no tile whose checksum is wrong; zarr-python is the oracle in the tests. About five times faster than
reading through zarr-python on two cores.
"""

import json

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipeline import storage
from pipeline.errors import InputError

blosc.use_threads = False  # the callers are the parallelism
CRC_BYTES = 4


def read_rows(array_url: str, rows: np.ndarray) -> np.ndarray:
    """Return tiles `rows` (in that order) of the sharded array at `array_url`, in its stored dtype.

    A damaged or cut-off array is an InputError that names it; no pixel of it is returned.
    """
    shape, dtype = _layout(array_url)
    content = np.frombuffer(storage.read_bytes(storage.join(array_url, "c", *["0"] * len(shape))), np.uint8)
    index = _checked(content[-16 * shape[0] - CRC_BYTES :], f"'{array_url}', its index").view("<u8").reshape(shape[0], 2)
    out = np.empty((len(rows), *shape[1:]), dtype)
    for target, row in enumerate(rows):
        start, size = (int(n) for n in index[row])
        blosc.decompress(_checked(content[start : start + size], f"'{array_url}', tile {row}"), out[target])
    return out


def _checked(part: np.ndarray, what: str) -> np.ndarray:
    """Return `part` (bytes) without the crc32c at its end, which must be that of the rest."""
    body, stated = part[:-CRC_BYTES], part[-CRC_BYTES:].tobytes()
    if google_crc32c.value(body).to_bytes(CRC_BYTES, "little") != stated:
        raise InputError(f"{what}, is damaged (its checksum is wrong); run 'terraloom repair' and then the job that wrote it")
    return body


def _layout(array_url: str) -> tuple[tuple[int, ...], np.dtype]:
    expected = "expected a shard written by Terraloom; run 'terraloom verify'"
    content = storage.read_bytes(storage.join(array_url, "zarr.json"))
    try:
        meta = json.loads(content)
        shape, outer, codec = tuple(meta["shape"]), meta["chunk_grid"]["configuration"]["chunk_shape"], meta["codecs"][0]
        inner, chain = codec["configuration"]["chunk_shape"], [c["name"] for c in codec["configuration"]["codecs"]]
        dtype = np.dtype(meta["data_type"])
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"'{array_url}' has no readable zarr.json ({error!r}); {expected}") from None
    if codec["name"] != "sharding_indexed" or tuple(outer) != shape:
        raise InputError(f"'{array_url}' is not one sharded chunk; {expected}")
    if tuple(inner) != (1, *shape[1:]) or chain != ["bytes", "blosc", "crc32c"]:
        raise InputError(
            f"'{array_url}' has inner chunks {inner} of {chain}, expected one tile of bytes, blosc, crc32c; {expected}"
        )
    return shape, dtype
