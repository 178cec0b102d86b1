import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from pipeline import shard as shard_module
from pipeline import storage
from pipeline.archive import SCHEMA_VERSION, Archive, create_archive, open_archive
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import load_sensor
from pipeline.shard import Tile

GRID = Grid()


def make_tiles(num_sites: int, seed: int = 0, sensor: str = "sentinel1_grd") -> list[Tile]:
    rng = np.random.default_rng(seed)
    definition = load_sensor(sensor)
    shape = (len(definition.bands), *definition.tile_shape(GRID.site_size_m))
    tiles = []
    for index in range(num_sites):
        pixels = rng.integers(-3000, -500, shape).astype(definition.dtype)
        if index == 1:
            pixels[:] = 0  # zarr would leave such a chunk out
        is_valid = rng.random(shape[1:]) > 0.2
        tiles.append(
            Tile(sensor, f"site_{index}", pixels, is_valid, datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=index), 0, "scene")
        )
    return tiles


def make_archive(folder: Path) -> Archive:
    return create_archive(str(folder), GRID, {"sentinel1_grd": load_sensor("sentinel1_grd")}, {"x": Label("binary", "site")})


def test_reader_agrees_with_zarr_and_xarray(tmp_path: Path) -> None:
    archive, tiles = make_archive(tmp_path / "a"), make_tiles(5)
    assert archive.publish("s_0", "train", tiles, "inputs") == 5
    rows = np.array([4, 0, 1, 1, 3])
    stored, is_valid = archive.read("s_0", "sentinel1_grd", rows)
    oracle = zarr.open_group(archive.shard_url("s_0"), mode="r")
    assert np.array_equal(stored, oracle["sentinel1_grd/pixels"][:][rows])
    assert np.array_equal(is_valid, oracle["sentinel1_grd/valid"][:][rows])
    assert np.array_equal(stored[0], tiles[4].pixels)
    opened = xr.open_zarr(archive.shard_url("s_0"), group="sentinel1_grd", consolidated=False)
    np.testing.assert_allclose(opened["pixels"].sel(band="VH")[3].values, tiles[3].pixels[1] * 0.01, rtol=1e-5)
    assert str(opened["time"].values[2])[:10] == "2020-01-03"
    assert opened["pixels"].attrs["units"] == "dB"


def test_shard_without_catalog_part_is_invisible(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a")
    archive.publish("s_0", "train", make_tiles(2), "inputs")
    archive.publish("s_1", "val", make_tiles(2), "inputs")
    (tmp_path / "a" / "catalog" / "s_1.parquet").unlink()
    assert archive.published() == ["s_0"]
    assert set(archive.catalog()["shard"]) == {"s_0"}
    assert archive.inputs() == {"s_0": "inputs"}


def test_killed_writer_leaves_nothing_that_counts(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_archive import make_archive, make_tiles\n"
        "archive = make_archive(Path(sys.argv[1]))\n"
        "for n in range(1000): archive.publish(f's_{n}', 'train', make_tiles(16, n), 'inputs')\n"
    )
    folder = tmp_path / "a"
    process = subprocess.Popen([sys.executable, "-c", script, str(folder), str(Path(__file__).parent)])
    limit = time.monotonic() + 60
    while len(list(folder.glob("catalog/*.parquet"))) < 3:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    archive = open_archive(str(folder))
    for shard, rows in archive.catalog().groupby("shard"):
        stored, is_valid = archive.read(str(shard), "sentinel1_grd", rows["row"].to_numpy())
        expected = make_tiles(16, int(str(shard).split("_")[1]))
        assert np.array_equal(stored, np.stack([t.pixels for t in expected]))
        assert np.array_equal(is_valid, np.stack([t.is_valid for t in expected]))


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    make_archive(tmp_path / "a")
    with pytest.raises(InputError, match="has no tiles; fill it with 'terraloom coregister'"):
        open_archive(str(tmp_path / "a")).catalog()
    with pytest.raises(InputError, match=r"site_size_m=640.*asks for .*site_size_m=320"):
        create_archive(str(tmp_path / "a"), Grid(320), {}, {})
    changed = load_sensor("sentinel1_grd").select(("VV",))
    with pytest.raises(InputError, match="sensor 'sentinel1_grd' is defined otherwise"):
        create_archive(str(tmp_path / "a"), GRID, {"sentinel1_grd": changed}, {})
    with pytest.raises(InputError, match="is not empty and not an archive"):
        create_archive(str(tmp_path), GRID, {}, {})
    index = tmp_path / "a" / "archive.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(InputError, match="schema version 3, this program reads version 2"):
        open_archive(str(tmp_path / "a"))
    with pytest.raises(InputError, match="not a plain name"):
        make_archive(tmp_path / "b").shard_url("../../etc/passwd")


@pytest.mark.parametrize("broken", ["_write_sensor", "write_bytes"])
def test_publish_that_fails_midway_leaves_the_others_readable(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once while the folder is staged, once when only the catalog part is missing."""
    archive = make_archive(tmp_path / "a")
    archive.publish("s_0", "train", make_tiles(3), "inputs")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(shard_module if broken == "_write_sensor" else storage, broken, fail)
        with pytest.raises(OSError, match="disk full"):
            archive.publish("s_1", "val", make_tiles(3, 1), "inputs")
    assert set(open_archive(archive.url).catalog()["shard"]) == {"s_0"}
    assert len(archive.read("s_0", "sentinel1_grd", np.arange(3))[0]) == 3
    present = {path.name for path in (tmp_path / "a" / "shards").iterdir()}
    assert present == {"s_0.zarr"} | ({"s_1.zarr"} if broken == "write_bytes" else set())
    archive.publish("s_1", "val", make_tiles(4, 2), "inputs")
    assert np.array_equal(archive.read("s_1", "sentinel1_grd", np.array([3]))[0][0], make_tiles(4, 2)[3].pixels)


def test_publishing_again_replaces_the_shard(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a")
    archive.publish("s_0", "train", make_tiles(5), "old")
    archive.publish("s_0", "train", make_tiles(2, seed=9), "new")
    assert len(archive.catalog()) == 2
    assert archive.inputs() == {"s_0": "new"}
    assert np.array_equal(archive.read("s_0", "sentinel1_grd", np.array([0]))[0][0], make_tiles(2, seed=9)[0].pixels)


def test_tile_of_another_shape_is_refused(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a")
    tile = make_tiles(1)[0]
    for wrong in (replace(tile, pixels=tile.pixels[:1]), replace(tile, pixels=tile.pixels.astype(np.int32))):
        with pytest.raises(ValueError, match=r"tile of sentinel1_grd is .*, expected \(2, 64, 64\) int16"):
            archive.publish("s_0", "train", [wrong], "inputs")
    assert archive.published() == []
