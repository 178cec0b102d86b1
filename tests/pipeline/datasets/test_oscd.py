from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.datasets import oscd
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import write_image, write_tif

GRID = Grid()
GSD_M = {band.name: band.gsd_m for band in load_sensor(oscd.SENSOR).bands}


def write_city(root: Path, city: str) -> None:
    """The published form: products' names before the bands', dates.txt, labels in a folder beside the images."""
    rng = np.random.default_rng(3)
    ground = rng.integers(500, 3000, (24, 24)).astype(np.uint16)
    images = root / "Onera Satellite Change Detection dataset - Images" / city
    for date in (1, 2):
        for band, gsd in GSD_M.items():
            pixels = np.kron(ground, np.ones((6, 6), np.uint16))[:: int(gsd // 10), :: int(gsd // 10)]
            write_tif(images / f"imgs_{date}" / f"S2A_OPER_MSI_L1C_T32TQR_{band}.tif", pixels, "EPSG:4326")
    (images / "dates.txt").write_text("date_1: 20160109\ndate_2: 20180228\n")
    change = np.zeros((144, 144), np.uint8)
    change[:8, :8] = 255
    write_image(root / "Onera Satellite Change Detection dataset - Train Labels" / city / "cm" / "cm.png", change)


def test_published_form(tmp_path: Path) -> None:
    write_city(tmp_path, "beirut")
    ((city, found),) = oscd.places(str(tmp_path)).items()
    tiles = oscd.tiles(city, found, GRID)
    assert (city, len(tiles), {t.site for t in tiles if t.order == 0}) == ("beirut", 8, {t.site for t in tiles if t.order == 1})
    assert {t.time for t in tiles} == {datetime(2016, 1, 9, tzinfo=UTC), datetime(2018, 2, 28, tzinfo=UTC)}
    first = next(t for t in tiles if t.site == "oscd/beirut/r0c0" and t.order == 1)
    assert first.labels == {"changed": 1.0, "changed_fraction": 64 / 4096}
    assert first.maps["change"].counts(2) == [4096 - 64, 64]
    with rasterio.open(found["imgs_1"]["B03"]) as source:
        assert np.array_equal(next(t for t in tiles if t.order == 0).pixels[2], source.read(1)[:64, :64])
    assert abs(first.registration.shift_x_m) < 1


def test_members_that_are_missing_are_one_line(tmp_path: Path) -> None:
    write_city(tmp_path, "beirut")
    found = oscd.places(str(tmp_path))["beirut"]
    with pytest.raises(InputError, match=r"city 'beirut' lacks band B8A of a date \(has B01, "):
        oscd.tiles("beirut", found | {"imgs_1": {k: v for k, v in found["imgs_1"].items() if k != "B8A"}}, GRID)
    with pytest.raises(InputError, match=r"city 'beirut' has neither dates.txt nor meta.json"):
        oscd.tiles("beirut", {k: v for k, v in found.items() if k != "dates"}, GRID)
    Path(found["dates"]).write_text("date_1: 2016\n")
    with pytest.raises(InputError, match=r"dates.txt' does not say date_1 and date_2 as YYYYMMDD"):
        oscd.tiles("beirut", found, GRID)


def test_published_split_with_some_of_train_held_out() -> None:
    labelled = {city: {"change": "x"} for cities in oscd.CITIES.values() for city in cities.split()}
    splits = oscd.splits("", labelled)
    assert {city for city, split in splits.items() if split == "test"} == set(oscd.CITIES["test"].split())
    assert [len(cities.split()) for cities in oscd.CITIES.values()] == [14, 10]
    assert 1 <= list(splits.values()).count("val") <= 5
    with pytest.raises(InputError, match=r"city 'atlantis' under '/data' is none of OSCD's 24"):
        oscd.splits("/data", {"atlantis": {}})


def test_cities_without_labelled_tests_are_split_by_hash(shared_data: Path) -> None:
    found = oscd.places(str(shared_data / "oscd"))
    splits = oscd.splits("", found)
    assert {split for city, split in splits.items() if "change" in found[city]} == {"train", "val", "test"}
    assert {splits[city] for city in ("montpellier", "rio", "valencia")} == {"test"}


def test_real_city_moves_by_its_shift_and_leaves_the_uncovered_edge_out(shared_data: Path) -> None:
    found = oscd.places(str(shared_data / "oscd"))["pisa"]
    tiles = oscd.tiles("pisa", found, GRID)
    second = [t for t in tiles if t.order == 1]
    assert abs(second[0].registration.shift_y_m) == pytest.approx(9.5, abs=2)
    top = [t.is_valid for t in second if "/r0" in t.site]
    assert [float(np.mean([is_valid[row] for is_valid in top])) for row in (0, 1)] == [0, 1]
    with rasterio.open(shared_data / "oscd" / "pisa" / "change.tif") as source:
        change = source.read(1)[:64, :64] > 0
    first = next(t for t in tiles if t.site == "oscd/pisa/r0c0")
    assert np.array_equal(first.maps["change"].classes == 1, change)
