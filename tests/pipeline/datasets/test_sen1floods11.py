from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.datasets import sen1floods11
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import write_tif

GRID = Grid()


def write_chip(folder: Path, name: str, **images: np.ndarray) -> dict[str, str]:
    for kind, pixels in ({"LabelHand": np.zeros((64, 64), np.int16)} | images).items():
        write_tif(folder / f"{name}_{kind}.tif", pixels)
    return sen1floods11.places(str(folder))[name]


def test_real_chips(shared_data: Path) -> None:
    places = sen1floods11.places(str(shared_data / "sen1floods11"))
    assert len(places) == 6
    spain = sen1floods11.tiles("Spain_7370579", places["Spain_7370579"], GRID)
    assert {tile.sensor for tile in spain} == {"sentinel1_grd", "sentinel2_l1c"}
    assert {tile.crs for tile in spain} == {"EPSG:4326"}
    radar = [tile for tile in spain if tile.sensor == "sentinel1_grd"]
    physical = load_sensor("sentinel1_grd").to_physical(np.stack([tile.pixels for tile in radar]))
    assert -30 < np.median(physical) < 0
    optical = load_sensor("sentinel2_l1c").to_physical(np.stack([t.pixels for t in spain if t.sensor == "sentinel2_l1c"]))
    assert 0.02 < np.median(optical) < 0.5
    with rasterio.open(shared_data / "sen1floods11" / "Spain_7370579_LabelHand.tif") as source:
        classes = source.read(1)[:64, :64]
    first = next(tile for tile in radar if tile.site.endswith("/r0c0"))
    assert first.labels["water_fraction"] == pytest.approx((classes == 1).sum() / (classes >= 0).sum())
    assert np.array_equal(first.maps["water"].is_labelled, classes >= 0)
    assert np.array_equal(first.maps["water"].classes == 1, classes == 1)
    west, south, east, north = first.geometry.bounds if first.geometry else (0, 0, 0, 0)
    assert east - west == pytest.approx(64 * 8.983e-5, rel=1e-3)
    assert north - south == pytest.approx(64 * 8.983e-5, rel=1e-3)


def test_hundredths_of_a_decibel_are_decibels(shared_data: Path) -> None:
    places = sen1floods11.places(str(shared_data / "sen1floods11"))
    with rasterio.open(shared_data / "sen1floods11" / "India_900498_S1Hand_centidB.tif") as source:
        expected = source.read()[:, :64, :64] / 100
    first = sen1floods11.tiles("India_900498", places["India_900498"], GRID)[0]
    assert np.allclose(load_sensor("sentinel1_grd").to_physical(first.pixels), expected, atol=1e-4)


def test_published_split_or_one_by_countries(tmp_path: Path) -> None:
    for name in ("Ghana_1", "Ghana_2", "India_3", "Peru_4"):
        write_chip(tmp_path / "LabelHand", name)
    found = sen1floods11.places(str(tmp_path))
    countries = sen1floods11.splits(str(tmp_path), found)
    assert countries["Ghana_1"] == countries["Ghana_2"]
    assert set(countries.values()) == {"train", "val", "test"}
    for split, chips in (("train", "Ghana_1"), ("valid", "Ghana_2"), ("test", "India_3")):
        (tmp_path / f"flood_{split}_data.csv").write_text(f"{chips}_S1Hand.tif,{chips}_LabelHand.tif\nPeru_9_S1Hand.tif,x\n")
    with pytest.raises(InputError, match=r"1 chips such as 'Peru_4' are in none of flood_train_data.csv"):
        sen1floods11.splits(str(tmp_path), found)
    (tmp_path / "flood_bolivia_data.csv").write_text("Peru_4_S1Hand.tif,Peru_4_LabelHand.tif\n")
    assert sen1floods11.splits(str(tmp_path), found) == {"Ghana_1": "train", "Ghana_2": "val", "India_3": "test", "Peru_4": "test"}


def test_what_is_zero_or_missing_is_not_data(tmp_path: Path) -> None:
    radar = np.full((2, 64, 64), -12.5, np.float32)
    radar[1, :, :20] = 0  # one band was not filled
    radar[:, 60:] = np.nan
    (tile,) = sen1floods11.tiles("Peru_4", write_chip(tmp_path, "Peru_4", S1Hand=radar), GRID)
    expected = np.ones((64, 64), bool)
    expected[:, :20] = expected[60:] = False
    assert np.array_equal(tile.is_valid, expected)
    assert (load_sensor("sentinel1_grd").to_physical(tile.pixels)[:, expected] == -12.5).all()


def test_members_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    radar = np.full((2, 64, 64), -12.5, np.float32)
    found = write_chip(tmp_path, "Peru_1", S1Hand=radar, LabelHand=np.zeros((32, 64), np.int16))
    with pytest.raises(InputError, match=r"Peru_1_S1Hand.tif' is 64 x 64 px, expected 32 x 64 px as what belongs to it"):
        sen1floods11.tiles("Peru_1", found, GRID)
    found = write_chip(tmp_path, "Peru_2", S1Hand=radar)
    write_tif(Path(found["_LabelHand.tif"]), np.zeros((64, 64), np.int16), transform=(10, 0, 500_030, 0, -10, 5_000_040))
    with pytest.raises(InputError, match=r"Peru_2_S1Hand.tif' lies 5.0 px from what belongs to it, expected the same grid"):
        sen1floods11.tiles("Peru_2", found, GRID)
    found = write_chip(tmp_path, "Peru_3", S1Hand=radar, LabelHand=np.full((64, 64), 7, np.int16))
    with pytest.raises(InputError, match=r"Peru_3_LabelHand.tif' has the values 7; expected 0, 1, -1"):
        sen1floods11.tiles("Peru_3", found, GRID)
    with pytest.raises(InputError, match="chip 'Peru_5' has a label but no image"):
        sen1floods11.tiles("Peru_5", write_chip(tmp_path, "Peru_5"), GRID)
