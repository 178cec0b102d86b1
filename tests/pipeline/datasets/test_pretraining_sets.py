"""SSL4EO-S12 and fMoW-Sentinel: time series of Sentinel images."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import fmow_sentinel, ssl4eo_s12
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate, write_tif

PRODUCTS = {
    "s1": ("S1A_IW_GRDH_1SDV_20200606T165043_20200606T165108_032900", "S1B_IW_GRDH_1SDV_20200301T165043_20200301T165108_032901"),
    "s2c": ("20200713T102031_20200713T102026_T32TPT", "20200125T102031_20200125T102026_T32TPT"),
    "s2a": ("20200713T102031_20200713T102026_T32TPT", "20200125T102031_20200125T102026_T32TPT"),
}
DEGREE = 1 / 111_320


def write_location(root: Path, location: str) -> None:
    for kind, (name, _) in ssl4eo_s12.KINDS.items():
        for number, product in enumerate(PRODUCTS[kind]):
            for band in load_sensor(name).bands:
                size, step = 2640 // int(band.gsd_m), DEGREE * band.gsd_m
                value = np.float32(-8.25) if kind == "s1" else np.uint16(700 + number)
                path = root / kind / location / product / f"{band.name.replace('B0', 'B')}.tif"
                write_tif(path, np.full((size, size), value), "EPSG:4326", (step, 0, 11.0, 0, -step, 46.0))


def test_ssl4eo_seasons_are_ordered_by_date(tmp_path: Path) -> None:
    write_location(tmp_path, "0000042")
    ((location, found),) = ssl4eo_s12.places(str(tmp_path)).items()
    tiles = ssl4eo_s12.tiles(location, found, Grid(2640))
    assert (location, len(tiles), {t.site for t in tiles}) == ("0000042", 6, {"ssl4eo_s12/0000042/r0c0"})
    dates = {(t.sensor, t.order): t.time for t in tiles}
    assert dates["sentinel1_grd", 0] == datetime(2020, 3, 1, 16, 50, 43, tzinfo=UTC)
    assert dates["sentinel2_l2a", 1] == datetime(2020, 7, 13, 10, 20, 31, tzinfo=UTC)
    values = {(t.sensor, t.order): load_sensor(t.sensor).to_physical(t.pixels) for t in tiles}
    assert values["sentinel2_l1c", 0].shape == (13, 264, 264)
    assert np.unique(values["sentinel2_l1c", 0]).tolist() == pytest.approx([0.0701])
    assert np.unique(values["sentinel1_grd", 1]).tolist() == pytest.approx([-8.25])
    truncate(Path(found["s2c"]) / PRODUCTS["s2c"][0] / "B8A.tif")
    with pytest.raises(InputError, match=r"cannot read '.*/s2c/0000042/20200713T102031_20200713T102026_T32TPT/B8A.tif'"):
        ssl4eo_s12.tiles(location, found, Grid(2640))
    (Path(found["s1"]) / "notes").mkdir()
    with pytest.raises(InputError, match=r"folder '.*notes' has no time in its name"):
        ssl4eo_s12.tiles(location, found, Grid(2640))
    with pytest.raises(InputError, match="no SSL4EO-S12 location under"):
        ssl4eo_s12.places(str(tmp_path / "s1"))


def write_series(root: Path) -> None:
    """Two locations of train, one of test; sizes differ, as published; image 7 is in no table."""
    for split, name, image, size in (
        ("train", "zoo_3", 1, 60), ("train", "zoo_3", 0, 60), ("train", "zoo_3", 7, 60),
        ("train", "crop_field_9", 4, 20), ("test_gt", "zoo_3", 2, 64),
    ):  # fmt: skip
        pixels = np.full((13, size, size), 500 + image, np.uint16)
        write_tif(root / split / name.rpartition("_")[0] / name / f"{name}_{image}.tif", pixels, "EPSG:4326")
    head = "category,location_id,image_id,timestamp,polygon\n"
    rows = "zoo,3,0,2017-05-01T10:00:00Z,x\nzoo,3,1,2016-05-01T10:00:00Z,x\ncrop_field,9,4,2016-05-01T10:00:00Z,x\nport,1,1,2016-05-01,x\n"
    (root / "train.csv").write_text(head + rows)
    (root / "test_gt.csv").write_text(head + "zoo,3,2,2018-05-01T10:00:00Z,x\n")


def test_fmow_series_by_their_tables(tmp_path: Path) -> None:
    write_series(tmp_path)
    found = fmow_sentinel.places(str(tmp_path))
    assert fmow_sentinel.splits("", found) == {"test_gt/zoo_3": "test", "train/zoo_3": "train", "train/crop_field_9": "train"}
    tiles = fmow_sentinel.tiles("train/zoo_3", found["train/zoo_3"], Grid(480))
    physical = [float(load_sensor(t.sensor).to_physical(t.pixels).mean()) for t in tiles]
    assert physical == pytest.approx([0.0501, 0.0500], rel=1e-5)
    assert [t.time.year for t in tiles if t.time] == [2016, 2017]
    assert [t.labels for t in tiles] == [{"fmow": 61.0}] * 2
    assert (tiles[0].transform or ())[2] == 500_000 + 6 * 10
    assert len(fmow_sentinel.CLASSES) == 62


def test_fmow_images_smaller_than_a_site_are_valid_in_the_middle(tmp_path: Path) -> None:
    write_series(tmp_path)
    found = fmow_sentinel.places(str(tmp_path))["train/crop_field_9"]
    (tile,) = fmow_sentinel.tiles("train/crop_field_9", found, Grid(320))
    assert np.array_equal(np.argwhere(tile.is_valid).min(axis=0), [6, 6])
    assert np.array_equal(np.argwhere(tile.is_valid).max(axis=0), [25, 25])
    assert tile.is_valid.sum() == 400
    assert fmow_sentinel.tiles("train/crop_field_9", found, Grid(640)) == []


def test_fmow_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no fMoW-Sentinel table under .*; expected train.csv, val.csv, test_gt.csv"):
        fmow_sentinel.places(str(tmp_path))
    write_series(tmp_path)
    found = fmow_sentinel.places(str(tmp_path))["train/zoo_3"]
    Path(found[0][1]).unlink()
    with pytest.raises(InputError, match=r"cannot read '.*zoo_3_0.tif'"):
        fmow_sentinel.tiles("train/zoo_3", found, Grid(480))
    with pytest.raises(InputError, match=r"timestamp 'spring' of .* is no time"):
        fmow_sentinel.tiles("train/zoo_3", [("spring", found[1][1])], Grid(480))
    (tmp_path / "train.csv").write_text("category,location_id\n")
    with pytest.raises(
        InputError, match=r"cannot read '.*train.csv': .*expected the columns category, location_id, image_id, timestamp"
    ):
        fmow_sentinel.places(str(tmp_path))
