"""What the archive's own jobs promise: verify finds, repair brings back, inspect tells, coregister does only what is new."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from shapely.geometry import box

from jobs.archives import verify, write_statistics
from jobs.coregister import coregister
from jobs.inspect import inspect, nearest_m
from jobs.registration_report import read_reports
from jobs.repair import repair
from jobs.simulate import scan_folder
from pipeline import storage
from pipeline.archive import Archive, open_archive
from pipeline.coregister import CoregisterConfig
from pipeline.errors import InputError
from pipeline.grid import Grid
from tests.pipeline.test_archive import make_archive, make_tiles

CONFIG = CoregisterConfig(register=False)


def write_scene(path: Path, num_bands: int, left_m: float, dtype: str = "uint8", seed: int = 0) -> None:
    """Write a scene of noise without gaps, 5.12 km a side from `left_m` east in zone 32N."""
    path.parent.mkdir(exist_ok=True)
    profile = {"driver": "GTiff", "width": 512, "height": 512, "count": num_bands, "dtype": dtype, "nodata": 0}
    with rasterio.open(path, "w", crs="EPSG:32632", transform=Affine(10, 0, left_m, 0, -10, 5_290_240), **profile) as file:
        file.write(np.random.default_rng(seed).integers(1, 250, (num_bands, 512, 512)).astype(dtype))


def make_filled(folder: Path) -> Archive:
    archive = make_archive(folder)
    for number, split in enumerate(("train", "val", "test")):
        tiles = [
            replace(t, site=f"{number}_{t.site}", geometry=box(9 + number, 48 + i / 100, 9.01 + number, 48.01 + i / 100))
            for i, t in enumerate(make_tiles(3, number))
        ]
        archive.publish(f"s_{number}", split, tiles, "inputs")
    write_statistics(archive)
    return archive


def test_verify_finds_one_flipped_byte_in_every_file(tmp_path: Path, cluster: None) -> None:
    archive, rng = make_filled(tmp_path / "a"), np.random.default_rng(3)
    assert verify(archive.url)["digest"] == archive.digest()
    files = [p for p in (tmp_path / "a/shards/s_1.zarr").rglob("*") if p.is_file()]
    assert len(files) >= 12
    for path in files:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"s_1: .*terraloom repair"):
            verify(archive.url)
        path.write_bytes(whole)
    part = tmp_path / "a/catalog/s_1.parquet"
    rows = part.read_bytes()
    part.write_bytes((tmp_path / "a/catalog/s_2.parquet").read_bytes())
    with pytest.raises(InputError, match="tiles are in the catalog twice"):
        verify(archive.url)
    part.write_bytes(rows[:-20])
    with pytest.raises(InputError, match=r"catalog part of shard 's_1' is damaged .*terraloom repair"):
        verify(archive.url)
    part.write_bytes(rows)
    statistics = tmp_path / "a/statistics.json"
    statistics.write_text(statistics.read_text().replace('"count": ', '"count": 1', 1))
    with pytest.raises(InputError, match=r"statistics\.json is not that of the train split"):
        verify(archive.url)


def test_repair_makes_the_catalog_anew_and_lists_what_is_lost(tmp_path: Path, cluster: None) -> None:
    archive = make_filled(tmp_path / "a")
    digest = archive.digest()
    for part in (tmp_path / "a/catalog").iterdir():
        part.unlink()
    (tmp_path / "a/statistics.json").unlink()
    done = repair(archive.url)
    assert (done["republished"], done["lost"], done["shards"]) == (3, {}, 3)
    assert verify(archive.url)["digest"] == digest
    assert repair(archive.url)["republished"] == 0
    chunk = tmp_path / "a/shards/s_1.zarr/sentinel1_grd/valid/c/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    storage.remove(archive.shard_url("s_2"))
    done = repair(archive.url)
    assert list(done["lost"]) == ["s_1", "s_2"]
    assert "checksum differs" in done["lost"]["s_1"]
    assert "not there" in done["lost"]["s_2"]
    assert archive.published() == ["s_0"]
    assert verify(archive.url)["faults"] == 0


def test_leftovers_of_killed_writers_are_removed_once_old(tmp_path: Path, cluster: None) -> None:
    archive = make_filled(tmp_path / "a")
    old, young = (tmp_path / "a/shards" / f".s_{n}.zarr.0123abcd{storage.STAGING_SUFFIX}" for n in (8, 9))
    for folder in (old, young):
        folder.mkdir()
        (folder / "zarr.json").write_text("{}")
    for path in (old / "zarr.json", old):
        os.utime(path, (1e9, 1e9))
    done = repair(archive.url)
    assert (done["leftovers_removed"], done["leftovers_too_young"], done["lost"]) == (1, 1, {})
    assert (old.exists(), young.exists()) == (False, True)
    archive.publish("s_9", "train", make_tiles(1), "inputs")  # the next writer of that shard does not wait
    assert not young.exists()


def test_publishing_no_tiles_takes_a_shard_away(tmp_path: Path) -> None:
    archive = make_filled(tmp_path / "a")
    assert archive.publish("s_1", "val", [], "why it is empty") == 0
    assert archive.published() == ["s_0", "s_2"]
    assert archive.inputs() == {"s_0": "inputs", "s_1": "why it is empty", "s_2": "inputs"}
    assert not storage.exists(archive.shard_url("s_1"))


def test_digest_does_not_depend_on_the_order_of_publishing(tmp_path: Path) -> None:
    archive, other = make_filled(tmp_path / "a"), make_archive(tmp_path / "b")
    kept = archive.digest()
    for shard, rows in reversed(list(archive.catalog().groupby("shard"))):
        number = int(str(shard)[2:])
        tiles = [replace(t, site=row.site, geometry=row.geometry) for t, row in zip(make_tiles(3, number), rows.itertuples())]
        other.publish(str(shard), rows["split"].iloc[0], tiles, "other inputs")
    assert other.digest() == kept
    other.publish("s_1", "val", make_tiles(3, 77), "inputs")
    assert other.digest() != kept


def test_new_scenes_touch_only_the_shards_they_cover(tmp_path: Path, cluster: None) -> None:
    scenes, url, grid = tmp_path / "scenes", str(tmp_path / "archive"), Grid(shard_sites=4)

    def run() -> dict:
        scan_folder(str(scenes), "rgb_aerial", "2020-01-01T00:00:00Z", None)
        return coregister(str(scenes), url, grid, CoregisterConfig(max_shift_m=20), None)

    write_scene(scenes / "first.tif", 3, 640_000)
    first = run()
    assert first["shards_written"] >= 4
    parts = {path.name: path.read_bytes() for path in Path(url, "catalog").iterdir()}
    write_scene(scenes / "second.tif", 3, 640_000 + 4 * 2560)
    second = run()
    assert (second["shards_up_to_date"], second["scenes_registered"]) == (first["shards_written"], 1)
    assert second["shards_written"] == first["shards_written"]
    assert {path.name: path.read_bytes() for path in Path(url, "catalog").iterdir() if path.name in parts} == parts
    stamps = {path: path.stat().st_mtime_ns for path in Path(url).rglob("*") if path.is_file() and "reports" not in path.parts}
    again = run()
    assert (again["shards_written"], again["scenes_registered"], again["digest"]) == (0, 0, second["digest"])
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert verify(url)["sites"] == second["sites"]


def test_a_replaced_file_is_noticed_and_nothing_else_made_again(tmp_path: Path, cluster: None) -> None:
    scenes, url = tmp_path / "scenes", str(tmp_path / "archive")

    def run() -> dict:
        scan_folder(str(scenes), "rgb_aerial", "2020-01-01T00:00:00Z", None)
        return coregister(str(scenes), url, Grid(), CONFIG, None)

    write_scene(scenes / "first.tif", 3, 640_000)
    write_scene(scenes / "second.tif", 3, 640_000 + 4 * 2560)
    assert run()["shards_up_to_date"] == 0
    first = open_archive(url).catalog()
    write_scene(scenes / "second.tif", 3, 640_000 + 4 * 2560, seed=1)
    again, second = run(), open_archive(url).catalog()
    replaced = second["scene"] == "second"
    assert again["shards_written"] == second.loc[replaced, "shard"].nunique() == again["shards_up_to_date"]
    assert second["site"].equals(first["site"])
    assert ((first["shard_digest"] != second["shard_digest"]) == replaced).all()
    assert run()["shards_written"] == 0
    assert len(storage.names(f"{url}/reports")) == 2
    assert set(read_reports(open_archive(url))["scenes"]) == {"first", "second"}


def test_a_shard_whose_scenes_give_no_tiles_any_more_is_withdrawn(tmp_path: Path, cluster: None) -> None:
    scenes, url = tmp_path / "scenes", str(tmp_path / "archive")
    write_scene(scenes / "first.tif", 3, 640_000)
    scan_folder(str(scenes), "rgb_aerial", "2020-01-01T00:00:00Z", None)
    assert coregister(str(scenes), url, Grid(), CONFIG, None)["shards_written"] >= 4
    with pytest.raises(InputError, match="has no tiles"):
        coregister(str(scenes), url, Grid(), replace(CONFIG, min_valid_fraction=1.01), None)
    assert storage.names(f"{url}/shards") == storage.names(f"{url}/catalog") == []


def test_inspect_tells_what_is_in_an_archive(tmp_path: Path) -> None:
    archive = make_filled(tmp_path / "a")
    found = inspect(archive.url)
    assert (found["shards"], found["sites"], found["digest"]) == (3, 9, archive.digest())
    sensor = found["sensors"]["sentinel1_grd"]
    assert (sensor["tiles"], sensor["dates"], sensor["first"][:10], sensor["last"][:10]) == (9, 3, "2020-01-01", "2020-01-03")
    assert found["raw_mb"] == pytest.approx(9 * 64 * 64 * (2 * 2 + 1) / 1e6, abs=1e-3)
    on_disk = sum(p.stat().st_size for p in (tmp_path / "a/shards").rglob("*") if p.is_file()) / 1e6
    assert found["stored_mb"] == pytest.approx(on_disk, abs=1e-3)
    assert 1 < sensor["compression"] < 5
    assert found["splits"]["sites"] == {"test": 3, "train": 3, "val": 3}
    assert found["labels"] == {"x": {"kind": "binary", "scope": "site", "labelled_tiles": 0}}
    catalog = open_archive(archive.url).catalog()
    centres = nearest_m(catalog[catalog["split"] == "train"], catalog[catalog["split"] == "val"])
    assert (
        centres
        == pytest.approx(np.cos(np.radians(48.025)) * np.radians(1) * 6_371_000, rel=1e-3)
        == pytest.approx(74_362, rel=1e-3)
    )
