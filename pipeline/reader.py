"""Decode tiles straight from a shard's bytes: the index at its end, then only the tiles asked for.

Reads the one layout that `archive` writes (Zarr v3, one sharded chunk an array, one tile an inner chunk, blosc then
crc32c) and gives no tile whose checksum is wrong; zarr-python is the oracle in the tests. Decoding leaves the
interpreter, so threads of an executor share it; `docs/benchmarks.md` has the speed.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numcodecs import blosc

from pipeline import objects, storage
from pipeline.errors import InputError
from pipeline.objects import StoredObject

blosc.use_threads = False  # the executor's threads are the parallelism
CRC_BYTES = 4
Targets = np.ndarray | list[np.ndarray]
"""Room for tiles, one entry each, contiguous within an entry."""
BLOCK_TILES = 32
"""What one thread decodes at a time: enough work to outweigh the handing over, small enough to share a shard evenly."""


@dataclass(frozen=True)
class TileArray:
    """One sharded array, open: `index` (tile, 2) holds start and size of each tile in `content`."""

    url: str
    shape: tuple[int, ...]
    dtype: np.dtype
    content: StoredObject
    index: np.ndarray

    def decode(self, rows: np.ndarray, out: Targets, executor: Executor | None = None) -> None:
        """Decode tiles `rows` to the entries of `out`, in that order; a damaged one is an InputError that names it."""
        blocks = [slice(first, first + BLOCK_TILES) for first in range(0, len(rows), BLOCK_TILES)]
        for _ in (executor.map if executor else map)(lambda block: self._decode(rows[block], out[block]), blocks):
            pass

    def _decode(self, rows: np.ndarray, out: Targets) -> None:
        starts, sizes = self.index[rows].T
        first, last = int(starts.min()), int((starts + sizes).max())
        if last - first <= 2 * int(sizes.sum()):  # neighbours: one read
            around = self.content.read(first, last)
            parts = (around[start : start + size] for start, size in zip((starts - first).tolist(), sizes.tolist()))
        else:
            parts = (self.content.read(start, start + size) for start, size in zip(starts.tolist(), sizes.tolist()))
        for part, row, target in zip(parts, rows.tolist(), out):
            blosc.decompress(_checked(part, f"'{self.url}', tile {row}"), target)


@contextmanager
def opened(array_url: str) -> Iterator[TileArray]:
    """Yield the sharded array at `array_url`, whose bytes are read as they are wanted."""
    shape, dtype = _layout(array_url)
    with objects.opened(storage.join(array_url, "c", *["0"] * len(shape))) as content:
        footer = content.read(content.size - 16 * shape[0] - CRC_BYTES, content.size)
        index = _checked(footer, f"'{array_url}', its index").view("<u8").reshape(shape[0], 2)
        yield TileArray(array_url, shape, dtype, content, index.astype(np.int64))


def read_rows(array_url: str, rows: np.ndarray, out: np.ndarray | None = None, executor: Executor | None = None) -> np.ndarray:
    """Return tiles `rows` (in that order) of the sharded array at `array_url`, in its stored dtype.

    A damaged or cut-off array is an InputError that names it; no pixel of it is returned.
    """
    with opened(array_url) as tiles:
        if out is None:
            out = np.empty((len(rows), *tiles.shape[1:]), tiles.dtype)
        tiles.decode(rows, out, executor)
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
