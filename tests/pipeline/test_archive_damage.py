"""One wrong byte anywhere in a shard: never wrong data."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from tests.pipeline.test_archive import make_archive, make_tiles


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_reader_refuses_a_flipped_byte_wherever_it_is(tmp_path: Path) -> None:
    """A flip gives the name of the shard or, where it is outside what was asked for, the right pixels."""
    archive, tiles = make_archive(tmp_path / "a"), make_tiles(3)
    archive.publish("s_0", "train", tiles, "inputs")
    chunk = tmp_path / "a/shards/s_0.zarr/sentinel1_grd/pixels/c/0/0/0/0"
    whole, rng = chunk.read_bytes(), np.random.default_rng(5)
    refusals = []
    for position in [0, len(whole) - 1, len(whole) - 30, *rng.integers(len(whole), size=60)]:
        flip(chunk, int(position))
        try:
            stored, _ = archive.read("s_0", "sentinel1_grd", np.array([2]))
            assert np.array_equal(stored[0], tiles[2].pixels)
        except InputError as error:
            refusals.append(str(error))
        chunk.write_bytes(whole)
    assert 10 < len(refusals) < 60
    assert all("s_0.zarr/sentinel1_grd/pixels" in text and "is damaged" in text for text in refusals)
    for rest in (b"", whole[:3], whole[:-7], whole[: len(whole) // 2]):
        chunk.write_bytes(rest)
        with pytest.raises(InputError, match=r"s_0\.zarr/sentinel1_grd/pixels', its index, is damaged"):
            archive.read("s_0", "sentinel1_grd", np.array([0]))


def test_reader_refuses_damaged_metadata(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a")
    archive.publish("s_0", "train", make_tiles(3), "inputs")
    meta = tmp_path / "a/shards/s_0.zarr/sentinel1_grd/pixels/zarr.json"
    whole = meta.read_text()
    for old, new in (
        (
            "{",
            "[",
        ),
        ('"int16"', '"inv16"'),
        ('"shape"', '"shave"'),
        ("sharding_indexed", "sharding_indexes"),
        ("crc32c", "crc32d"),
    ):
        meta.write_text(whole.replace(old, new, 1) if old != "crc32c" else whole.replace(old, new))
        with pytest.raises(InputError, match=r"s_0\.zarr/sentinel1_grd/pixels'"):
            archive.read("s_0", "sentinel1_grd", np.array([0]))
