"""Labels of tiles and of their pixels, through an archive: what went in comes out, and damage is found and never read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jobs.archives import verify, write_statistics
from jobs.inspect import inspect
from jobs.repair import repair
from pipeline.archive import Archive, create_archive, open_archive
from pipeline.errors import InputError
from pipeline.labels import Label, LabelMap
from pipeline.sensors import load_sensor
from tests.pipeline.test_archive import GRID, make_tiles
from tests.pipeline.test_archive_damage import flip

LABELS = {
    "water": Label("map", "tile", ("dry", "open water")),
    "cover": Label("multilabel", "tile", ("urban", "arable", "forest")),
}
CLASSES = "a/shards/s_0.zarr/sentinel1_grd/labels/water/classes/c/0/0/0"


def make_map(seed: int) -> LabelMap:
    rng = np.random.default_rng(seed)
    return LabelMap(rng.integers(0, 2, (64, 64), np.uint8), rng.random((64, 64)) > 0.3)


def make_labelled(folder: Path) -> tuple[Archive, list[LabelMap]]:
    """Three sites, of which the last has no map."""
    archive = create_archive(str(folder), GRID, {"sentinel1_grd": load_sensor("sentinel1_grd")}, LABELS)
    maps = [make_map(0), make_map(1)]
    tiles = make_tiles(3)
    for index, found in enumerate(maps):
        tiles[index] = replace(tiles[index], maps={"water": found}, labels={"cover": [index, 2]})
    archive.publish("s_0", "train", tiles, "inputs")
    write_statistics(archive)
    return archive, maps


def test_maps_come_back_with_what_is_not_labelled(tmp_path: Path) -> None:
    archive, maps = make_labelled(tmp_path / "a")
    found = archive.read_map("s_0", "sentinel1_grd", "water", np.array([2, 1, 0]))
    assert not found.is_labelled[0].any()
    for row, expected in ((1, maps[1]), (2, maps[0])):
        assert np.array_equal(found.is_labelled[row], expected.is_labelled)
        assert np.array_equal(found.classes[row][expected.is_labelled], expected.classes[expected.is_labelled])
    with pytest.raises(InputError, match=r"shard 's_0' has no map 'snow' of sentinel1_grd"):
        archive.read_map("s_0", "sentinel1_grd", "snow", np.array([0]))


def test_xarray_reads_maps_as_categories(tmp_path: Path) -> None:
    archive, maps = make_labelled(tmp_path / "a")
    opened = xr.open_zarr(archive.shard_url("s_0"), group="sentinel1_grd/labels/water", consolidated=False)
    assert opened["classes"].dims == ("tile", "y", "x")
    assert opened["classes"].attrs["flag_meanings"] == "dry open_water"
    water = (opened["classes"] == 1) & opened["labelled"]
    assert int(water[0].sum()) == int((maps[0].classes[maps[0].is_labelled] == 1).sum())


def test_inspect_counts_labels(tmp_path: Path) -> None:
    archive, maps = make_labelled(tmp_path / "a")
    found = inspect(archive.url)
    dry = sum(int((m.classes[m.is_labelled] == 0).sum()) for m in maps)
    wet = sum(int((m.classes[m.is_labelled] == 1).sum()) for m in maps)
    assert found["labels"]["water"] == {
        "kind": "map", "scope": "tile", "labelled_tiles": 2, "pixels_by_class": {"dry": dry, "open water": wet},
    }  # fmt: skip
    assert found["labels"]["cover"]["tiles_by_class"] == {"urban": 1, "arable": 1, "forest": 2}
    pixels = sum(
        p.stat().st_size
        for name in ("pixels", "valid")
        for p in (tmp_path / f"a/shards/s_0.zarr/sentinel1_grd/{name}").rglob("*")
        if p.is_file()
    )
    assert found["sensors"]["sentinel1_grd"]["stored_mb"] == pytest.approx(pixels / 1e6, abs=0.006)


def test_map_of_another_form_is_refused(tmp_path: Path) -> None:
    archive, maps = make_labelled(tmp_path / "a")
    tile = make_tiles(1)[0]
    for wrong, message in (
        (maps[0][:32, :], r"map 'water' is \(32, 64\) uint8, expected \(64, 64\) uint8"),
        (LabelMap(maps[0].classes.astype(int), maps[0].is_labelled), r"map 'water' is \(64, 64\) int64"),
        (LabelMap(maps[0].classes + np.uint8(5), maps[0].is_labelled), "has class 6, expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            archive.publish("s_1", "train", [replace(tile, maps={"water": wrong})], "inputs")
    assert archive.published() == ["s_0"]


def test_a_flipped_byte_in_a_map_is_never_read_and_always_found(tmp_path: Path, cluster: None) -> None:
    archive, maps = make_labelled(tmp_path / "a")
    assert verify(archive.url)["faults"] == 0
    path = tmp_path / CLASSES
    whole = path.read_bytes()
    for position in (5, len(whole) // 2, len(whole) - 3):
        flip(path, position)
        with pytest.raises(InputError, match=r"2 faults: s_0: checksum differs .* s_0: sentinel1_grd map 'water' cannot be read"):
            verify(archive.url)
        damaged = 0
        for row in range(2):
            try:
                found = archive.read_map("s_0", "sentinel1_grd", "water", np.array([row]))[0]
                assert np.array_equal(found.classes[found.is_labelled], maps[row].classes[maps[row].is_labelled])
            except InputError as error:
                assert "labels/water/classes" in str(error)  # noqa: PT017
                damaged += 1
        assert damaged
        path.write_bytes(whole)
    assert verify(archive.url)["faults"] == 0


def test_repair_hides_a_shard_with_a_damaged_map_and_takes_it_back(tmp_path: Path, cluster: None) -> None:
    archive, _ = make_labelled(tmp_path / "a")
    archive.publish("s_1", "val", make_tiles(1, 7), "inputs")
    flip(tmp_path / CLASSES, 100)
    assert list(repair(archive.url)["lost"]) == ["s_0"]
    assert open_archive(archive.url).published() == ["s_1"]
    flip(tmp_path / CLASSES, 100)
    assert repair(archive.url)["republished"] == 1
    assert open_archive(archive.url).read_map("s_0", "sentinel1_grd", "water", np.array([0])).is_labelled.any()


def test_verify_compares_maps_with_the_catalog(tmp_path: Path, cluster: None) -> None:
    """A shard that is whole but says of itself what its maps do not hold."""
    archive, _ = make_labelled(tmp_path / "a")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LabelMap, "counts", lambda self, num_classes: [1] * num_classes)
        archive.publish("s_0", "train", [replace(make_tiles(1)[0], maps={"water": make_map(3)})], "inputs")
    write_statistics(archive)
    with pytest.raises(InputError, match="sentinel1_grd map 'water' has other classes than the catalog says"):
        verify(archive.url)
