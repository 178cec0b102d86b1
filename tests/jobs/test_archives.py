"""Archives that lost something: what `inspect` says, and what `repair` brings back."""

import shutil
from pathlib import Path

import pytest

from jobs.archives import inspect, repair, verify
from pipeline.archive import open_archive
from pipeline.errors import InputError


@pytest.fixture
def damaged(archive: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive, tmp_path / "archive"))


def test_inspect_counts_what_the_catalog_holds(archive: str) -> None:
    catalog, found = open_archive(archive).catalog(), inspect(archive)
    assert {name: s["tiles"] for name, s in found["sensors"].items()} == catalog["sensor"].value_counts().to_dict()
    assert found["sensors"]["sentinel2_l2a"]["tile_px"] == [64, 64]
    assert found["bytes"] == sum(p.stat().st_size for p in Path(archive).rglob("shards/*.zarr/**/*") if p.is_file())
    assert 1 < found["compression"] < 10
    assert sum(found["sites_by_sensors"].values()) == found["sites"]


def test_repair_publishes_whole_shards_again(damaged: Path, cluster: None) -> None:
    before = open_archive(str(damaged)).digest()
    shutil.rmtree(damaged / "catalog")
    (damaged / "shards" / ".left.host.1.zarr").mkdir()
    found = repair(str(damaged))
    assert len(found["republished"]) == len(list(damaged.glob("shards/*.zarr")))
    assert found["lost"] == []
    assert found["leftovers_removed"] == 1
    assert open_archive(str(damaged)).digest() == before
    verify(str(damaged))


def test_repair_withdraws_a_damaged_shard_and_says_which(damaged: Path, cluster: None) -> None:
    shard = open_archive(str(damaged)).published()[0]
    file = max((p for p in (damaged / "shards" / f"{shard}.zarr").rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{shard}: checksum differs"):
        verify(str(damaged))
    assert repair(str(damaged))["lost"] == [shard]
    assert shard not in open_archive(str(damaged)).published()
    assert verify(str(damaged))["faults"] == 0
