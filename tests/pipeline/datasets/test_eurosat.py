from pathlib import Path

import numpy as np
import pytest

from jobs.ingest import ingest
from pipeline.archive import open_archive
from pipeline.datasets import eurosat, eurosat_rgb
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate, write_image, write_tif

GRID = Grid()


def write_patch(folder: Path, name: str, pixels: np.ndarray | None = None) -> Path:
    steps = np.arange(1, 14, dtype=np.uint16)[:, None, None] * np.full((13, 64, 64), 100, np.uint16)
    return write_tif(folder / "EuroSAT_MS" / name.split("_")[0] / f"{name}.tif", steps if pixels is None else pixels)


def test_bands_units_label_and_place(tmp_path: Path) -> None:
    """The files keep B8A last; the sensor has it after B08."""
    path = write_patch(tmp_path, "River_7")
    assert eurosat.places(str(tmp_path)) == {"River_7": str(path)}
    (tile,) = eurosat.tiles("River_7", str(path), GRID)
    sensor = load_sensor("sentinel2_l1c")
    values = dict(zip(sensor.band_names, sensor.to_physical(tile.pixels)[:, 0, 0].tolist()))
    expected = {"B01": 0.01, "B8A": 0.13, "B09": 0.09, "B12": 0.12}
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert tile.labels == {"eurosat": 8.0}
    assert (tile.crs, tile.transform) == ("EPSG:32633", (10, 0, 500_000, 0, -10, 5_000_000))


def test_published_split_is_whole_or_refused(tmp_path: Path) -> None:
    for name in ("Forest_1", "River_7"):
        write_patch(tmp_path, name)
    found = eurosat.places(str(tmp_path))
    (tmp_path / "eurosat-spatial-train.txt").write_text("Forest_1.jpg\n")
    with pytest.raises(InputError, match=r"1 patches such as 'River_7' are in none of the split files"):
        eurosat.splits(str(tmp_path), found)
    (tmp_path / "eurosat-spatial-test.txt").write_text("River_7.jpg\n")
    assert eurosat.splits(str(tmp_path), found) == {"Forest_1": "train", "River_7": "test"}
    (tmp_path / "eurosat-train.txt").write_text("River_7.jpg\n")
    with pytest.raises(InputError, match="has the splits eurosat, eurosat-spatial; leave the files of one"):
        eurosat.splits(str(tmp_path), found)


def test_without_a_published_split_neighbours_stay_together(tmp_path: Path) -> None:
    """Eight squares of a tenth of a degree, each with three patches side by side, named in no order of theirs."""
    square_of, pixels = {}, np.ones((13, 64, 64), np.uint16)
    for number in range(24):
        square, step = number % 8, number // 8
        name = f"Forest_{number}"
        square_of[name] = square
        corner = (1e-4, 0, 12.02 + square * 0.2 + step * 0.01, 0, -1e-4, 45.08)
        write_tif(tmp_path / "Forest" / f"{name}.tif", pixels, "EPSG:4326", corner)
    splits = eurosat.splits(str(tmp_path), eurosat.places(str(tmp_path)))
    by_square = [{split for name, split in splits.items() if square_of[name] == square} for square in range(8)]
    assert all(len(found) == 1 for found in by_square)
    assert set(splits.values()) == {"train", "val", "test"}


def test_rgb_patches(tmp_path: Path) -> None:
    colour = np.zeros((64, 64, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    path = write_image(tmp_path / "2750" / "SeaLake" / "SeaLake_3.jpg", colour)
    (tile,) = eurosat_rgb.tiles("SeaLake_3", eurosat_rgb.places(str(tmp_path))["SeaLake_3"], GRID)
    assert load_sensor(tile.sensor).band_names == ("red", "green", "blue")
    assert np.abs(tile.pixels.mean(axis=(1, 2)) - [200, 100, 50]).max() < 3
    assert (tile.labels, tile.crs, tile.is_valid.all()) == ({"eurosat": 9.0}, None, True)
    truncate(path)
    with pytest.raises(InputError, match=r"cannot read '.*SeaLake_3.jpg'"):
        eurosat_rgb.tiles("SeaLake_3", str(path), GRID)


def test_chip_of_another_form_is_one_line(tmp_path: Path) -> None:
    path = write_patch(tmp_path, "River_1", np.ones((3, 64, 64), np.uint16))
    with pytest.raises(InputError, match=r"River_1.tif' has 3 bands, expected 13"):
        eurosat.tiles("River_1", str(path), GRID)
    path = write_tif(tmp_path / "River" / "River_2.tif", np.ones((13, 64, 64), np.uint16), crs=None)
    with pytest.raises(InputError, match=r"River_2.tif' has no CRS"):
        eurosat.tiles("River_2", str(path), GRID)
    path = write_patch(tmp_path, "River_3")
    with pytest.raises(InputError, match=r"'River_3' is 64 x 64 px, a site of 1280 m needs 128; give --site-size-m of at most 640"):
        eurosat.tiles("River_3", str(path), Grid(site_size_m=1280))


def test_corrupt_chip_is_set_aside_while_the_rest_goes_on(tmp_path: Path, cluster: None) -> None:
    for number in range(12):
        write_patch(tmp_path / "in", f"Forest_{number}", np.full((13, 64, 64), 900 + number, np.uint16))
    empty = np.full((13, 64, 64), 900, np.uint16)
    empty[10] = 0  # a band that was never filled
    write_patch(tmp_path / "in", "Forest_12", empty)
    for split, numbers in (("train", range(9)), ("val", (9, 10)), ("test", (11, 12))):
        (tmp_path / "in" / f"eurosat-{split}.txt").write_text("\n".join(f"Forest_{number}.jpg" for number in numbers))
    broken = tmp_path / "in" / "EuroSAT_MS" / "Forest" / "Forest_5.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    found = ingest("eurosat", str(tmp_path / "in"), str(tmp_path / "archive"), GRID)
    assert list(found["refused"]) == ["Forest_5"]
    assert "cannot read" in found["refused"]["Forest_5"]
    assert (found["places"], found["places_without_tiles"], found["sites"]) == (12, 1, 11)
    broken.write_bytes(whole)
    again = ingest("eurosat", str(tmp_path / "in"), str(tmp_path / "archive"), GRID)
    assert (again["refused"], again["sites"], again["shards_written"]) == ({}, 12, 1)
    assert set(open_archive(str(tmp_path / "archive")).labels) == {"eurosat"}
