"""How fast shards become arrays, against what decoding alone costs: python -m tests.bench.bench_reader.

The floor decodes chunks that lie in memory into an array that is there: no file, no index, no checksum. Every way
reads the same shards into the same array, one after the other in each round; the best round counts.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import tyro
import zarr
from numcodecs import blosc

from pipeline import reader
from pipeline.archive import Archive
from pipeline.reader import BLOCK_TILES, CRC_BYTES
from tests.bench.calibrated_tiles import SENSORS, calibrated_archive

ZARR = "zarr-python"


@dataclass(frozen=True)
class Options:
    shards: int = 6
    tiles: int = 512
    """Tiles a shard."""
    rounds: int = 7
    threads: int = 2


def chunks_of(url: str) -> list[bytes]:
    """Return the compressed tiles of an array without their checksums."""
    with reader.opened(url) as tiles:
        return [tiles.content.read(start, start + size - CRC_BYTES).tobytes() for start, size in tiles.index.tolist()]


def floor(chunks: list[bytes], out: np.ndarray, executor: Executor) -> None:
    def decode(first: int) -> None:
        for chunk, target in zip(chunks[first : first + BLOCK_TILES], out[first : first + BLOCK_TILES]):
            blosc.decompress(chunk, target)

    for _ in executor.map(decode, range(0, len(chunks), BLOCK_TILES)):
        pass


def ways(archive: Archive, sensor: str, executor: Executor) -> dict[str, Callable[[], None]]:
    """Return name -> function that reads the pixels of all shards of `sensor` into one array."""
    urls = [f"{archive.shard_url(shard)}/{sensor}/pixels" for shard in archive.published()]
    compressed = [chunks_of(url) for url in urls]
    first = reader.read_rows(urls[0], np.arange(len(compressed[0])))
    out, rows = np.empty_like(first), np.arange(len(first))

    def ours() -> None:
        for url in urls:
            reader.read_rows(url, rows, out, executor)

    def without_crc() -> None:
        with patch.object(reader, "_checked", lambda part, what: part[:-CRC_BYTES]):
            ours()

    def oracle() -> None:
        for url in urls:
            out[:] = zarr.open_array(url, mode="r")[:]

    def decode_only() -> None:
        for chunks in compressed:
            floor(chunks, out, executor)

    return {"floor": decode_only, "ours": ours, "ours without crc": without_crc, ZARR: oracle}


def main(options: Options) -> None:
    num_tiles = options.shards * options.tiles
    print(
        f"tiles/s, best of {options.rounds}: {options.shards} shards of {options.tiles} tiles, blosc zstd-3 bitshuffle, page cache warm"
    )
    with calibrated_archive(options.shards, options.tiles) as archive:
        for sensor in SENSORS:
            for threads in range(1, options.threads + 1):
                with ThreadPoolExecutor(threads) as executor:
                    best = measure(ways(archive, sensor, executor), options.rounds)
                rates = ", ".join(f"{name} {num_tiles / s:.0f} ({best['floor'] / s:.0%})" for name, s in best.items())
                print(f"{sensor}, {threads} thread{'s'[: threads - 1]}: {rates}", flush=True)


def measure(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each function, all of them called in every round."""
    best = dict.fromkeys(functions, np.inf)
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main(tyro.cli(Options))
