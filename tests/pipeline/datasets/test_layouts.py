"""Layouts of public data sets, on real chips where there are some and on files of the published form elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from jobs.ingest import ingest
from pipeline.datasets import eurosat, sen1floods11, sen12mscr
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor

GRID = Grid()


def write(path: Path, pixels: np.ndarray, crs: str | None = "EPSG:32633", **profile: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    transform = from_origin(500_000, 5_000_000, 10, 10)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=pixels.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as out:
        out.write(pixels)
    return path


def test_sen1floods11_on_real_chips(shared_data: Path) -> None:
    folder = str(shared_data / "sen1floods11")
    assert len(sen1floods11.places(folder)) == 6
    spain = sen1floods11.tiles(folder, "Spain_7370579", GRID)
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
    west, south, east, north = first.geometry.bounds if first.geometry else (0, 0, 0, 0)
    assert east - west == pytest.approx(64 * 8.983e-5, rel=1e-3)
    assert north - south == pytest.approx(64 * 8.983e-5, rel=1e-3)


def test_sen1floods11_reads_hundredths_of_a_decibel_as_decibels(shared_data: Path) -> None:
    tiles = sen1floods11.tiles(str(shared_data / "sen1floods11"), "India_900498", GRID)
    values = load_sensor("sentinel1_grd").to_physical(np.stack([tile.pixels for tile in tiles]))
    assert -30 < np.median(values) < 0


def test_sen1floods11_takes_the_published_split(tmp_path: Path) -> None:
    for name in ("Ghana_1", "Ghana_2", "India_3"):
        write(tmp_path / "LabelHand" / f"{name}_LabelHand.tif", np.zeros((1, 64, 64), np.int16))
    assert sen1floods11.splits(str(tmp_path)) == {}
    for split, chips in (("train", "Ghana_1"), ("valid", "Ghana_2"), ("test", "India_3")):
        (tmp_path / f"flood_{split}_data.csv").write_text(f"{chips}_S1Hand.tif,{chips}_LabelHand.tif\nPeru_9_S1Hand.tif,x\n")
    assert sen1floods11.splits(str(tmp_path)) == {"Ghana_1": "train", "Ghana_2": "val", "India_3": "test"}
    write(tmp_path / "LabelHand" / "Bolivia_4_LabelHand.tif", np.zeros((1, 64, 64), np.int16))
    with pytest.raises(InputError, match=r"1 chips such as 'Bolivia_4' are in none of flood_train_data.csv"):
        sen1floods11.splits(str(tmp_path))
    (tmp_path / "flood_bolivia_data.csv").write_text("Bolivia_4_S1Hand.tif,Bolivia_4_LabelHand.tif\n")
    assert sen1floods11.splits(str(tmp_path))["Bolivia_4"] == "test"


def test_sen12mscr_pairs_real_patches(shared_data: Path) -> None:
    folder = str(shared_data / "sen12mscr")
    assert sen12mscr.places(folder) == ["ROIs1158_spring_101", "ROIs1158_spring_15", "ROIs1868_summer_19"]
    tiles = sen12mscr.tiles(folder, "ROIs1158_spring_101", GRID)
    assert len(tiles) == 32
    by_sensor = {name: {t.site for t in tiles if t.sensor == name} for name in ("sentinel1_grd", "sentinel2_l1c")}
    assert by_sensor["sentinel1_grd"] == by_sensor["sentinel2_l1c"]
    assert {t.order for t in sen12mscr.tiles(folder, "ROIs1868_summer_19", GRID) if t.sensor == "sentinel2_l1c"} == {1}


def test_sen12mscr_reads_the_published_names(tmp_path: Path) -> None:
    write(tmp_path / "ROIs1158_spring_s1" / "s1_1" / "ROIs1158_spring_s1_1_p30.tif", np.full((2, 64, 64), -12.5, np.float32))
    for kind, value in (("s2", 1500), ("s2_cloudy", 8000)):
        write(
            tmp_path / f"ROIs1158_spring_{kind}" / f"{kind}_1" / f"ROIs1158_spring_{kind}_1_p30.tif",
            np.full((13, 64, 64), value, np.uint16),
        )
    tiles = sen12mscr.tiles(str(tmp_path), "ROIs1158_spring_1", GRID)
    values = {(t.sensor, t.order): load_sensor(t.sensor).to_physical(t.pixels).mean() for t in tiles}
    wanted = {("sentinel1_grd", 0): -12.5, ("sentinel2_l1c", 0): 0.15, ("sentinel2_l1c", 1): 0.8}
    assert values == pytest.approx(wanted, rel=1e-5)
    assert len({t.site for t in tiles}) == 1


def test_eurosat_bands_labels_and_split(tmp_path: Path) -> None:
    """The files keep B8A last; the sensor has it after B08."""
    pixels = np.arange(1, 14, dtype=np.uint16)[:, None, None] * np.full((13, 64, 64), 100, np.uint16)
    for name in ("Forest_1", "River_7"):
        write(tmp_path / "EuroSAT_MS" / name.split("_")[0] / f"{name}.tif", pixels)
    (tile,) = eurosat.tiles(str(tmp_path), "River_7", GRID)
    values = dict(zip(load_sensor("sentinel2_l1c").band_names, tile.pixels[:, 0, 0]))
    assert (values["B01"], values["B8A"], values["B09"], values["B12"]) == (100, 1300, 900, 1200)
    assert tile.labels == {"eurosat": 8.0}
    assert tile.transform == (10, 0, 500_000, 0, -10, 5_000_000)
    assert eurosat.splits(str(tmp_path)) == {}
    (tmp_path / "eurosat-spatial-train.txt").write_text("Forest_1.jpg\n")
    with pytest.raises(InputError, match=r"1 patches such as 'River_7' are in none of the split files"):
        eurosat.splits(str(tmp_path))
    (tmp_path / "eurosat-spatial-test.txt").write_text("River_7.jpg\n")
    assert eurosat.splits(str(tmp_path)) == {"Forest_1": "train", "River_7": "test"}
    (tmp_path / "eurosat-train.txt").write_text("River_7.jpg\n")
    with pytest.raises(InputError, match="has the splits eurosat, eurosat-spatial; leave the files of one"):
        eurosat.splits(str(tmp_path))


@pytest.mark.parametrize("layout", [eurosat, sen1floods11, sen12mscr])
def test_folder_without_chips_is_one_line(layout, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \S+ (patch|chip) under '.*'; expected"):
        layout.places(str(tmp_path))


def test_chip_of_another_form_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "River" / "River_1.tif", np.ones((3, 64, 64), np.uint16))
    with pytest.raises(InputError, match=r"River_1.tif' has 3 bands, expected 13"):
        eurosat.tiles(str(tmp_path), "River_1", GRID)
    write(tmp_path / "River" / "River_2.tif", np.ones((13, 64, 64), np.uint16), crs=None)
    with pytest.raises(InputError, match=r"River_2.tif' has no CRS"):
        eurosat.tiles(str(tmp_path), "River_2", GRID)


def test_corrupt_chip_is_set_aside_while_the_rest_goes_on(tmp_path: Path, cluster: None) -> None:
    for number in range(12):
        write(tmp_path / "in" / "Forest" / f"Forest_{number}.tif", np.full((13, 64, 64), 900 + number, np.uint16))
    broken = tmp_path / "in" / "Forest" / "Forest_5.tif"
    broken.write_bytes(broken.read_bytes()[:300])
    found = ingest("eurosat", str(tmp_path / "in"), str(tmp_path / "archive"), GRID)
    assert list(found["refused"]) == ["Forest_5"]
    assert "cannot read" in found["refused"]["Forest_5"]
    assert found["places"] == found["sites"] == 11
    broken.unlink()
    write(broken, np.full((13, 64, 64), 905, np.uint16))
    again = ingest("eurosat", str(tmp_path / "in"), str(tmp_path / "archive"), GRID)
    assert (again["refused"], again["sites"], again["shards_written"]) == ({}, 12, 1)
