"""SEN12MS-CR and SEN12MS, which name and hold out regions in the same way."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import sen12ms, sen12mscr
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate, write_tif

GRID = Grid()
RADAR = np.full((2, 64, 64), -12.5, np.float32)


def write_patch(folder: Path, region: str, kind: str, scene: int, patch: int, pixels: np.ndarray) -> Path:
    return write_tif(folder / region / f"{kind}_{scene}" / f"{region}_{kind}_{scene}_p{patch}.tif", pixels)


def optical(value: int) -> np.ndarray:
    return np.full((13, 64, 64), value, np.uint16)


def test_sen12mscr_pairs_real_patches(shared_data: Path) -> None:
    places = sen12mscr.places(str(shared_data / "sen12mscr"))
    assert list(places) == ["ROIs1158_spring_101_p30", "ROIs1868_summer_19_p30", "ROIs1158_spring_15_p30"]
    tiles = sen12mscr.tiles("ROIs1158_spring_101_p30", places["ROIs1158_spring_101_p30"], GRID)
    assert len(tiles) == 32
    by_sensor = {name: {t.site for t in tiles if t.sensor == name} for name in ("sentinel1_grd", "sentinel2_l1c")}
    assert by_sensor["sentinel1_grd"] == by_sensor["sentinel2_l1c"]
    cloudy = sen12mscr.tiles("ROIs1868_summer_19_p30", places["ROIs1868_summer_19_p30"], GRID)
    assert {(t.order, t.labels["cloudy"]) for t in cloudy if t.sensor == "sentinel2_l1c"} == {(1, 1.0)}
    assert {t.labels.get("cloudy") for t in tiles} == {None, 0.0}
    assert sen12mscr.splits("", places) == {
        "ROIs1158_spring_101_p30": "train", "ROIs1868_summer_19_p30": "val", "ROIs1158_spring_15_p30": "train",
    }  # fmt: skip


def test_sen12mscr_reads_the_published_names(tmp_path: Path) -> None:
    for kind, pixels in (("s1", RADAR), ("s2", optical(1500)), ("s2_cloudy", optical(8000))):
        write_patch(tmp_path, "ROIs1158_spring", kind, 106, 30, pixels)
    ((place, found),) = sen12mscr.places(str(tmp_path)).items()
    tiles = sen12mscr.tiles(place, found, GRID)
    values = {(t.sensor, t.order): load_sensor(t.sensor).to_physical(t.pixels).mean() for t in tiles}
    wanted = {("sentinel1_grd", 0): -12.5, ("sentinel2_l1c", 0): 0.15, ("sentinel2_l1c", 1): 0.8}
    assert values == pytest.approx(wanted, rel=1e-5)
    assert len({t.site for t in tiles}) == 1
    assert sen12mscr.splits("", {place: found}) == {"ROIs1158_spring_106_p30": "test"}
    truncate(Path(found["s2_cloudy"]))
    with pytest.raises(InputError, match=r"cannot read '.*ROIs1158_spring_s2_cloudy_106_p30.tif'"):
        sen12mscr.tiles(place, found, GRID)


def test_held_out_regions_are_as_many_as_published() -> None:
    regions = {"spring": "ROIs1158", "summer": "ROIs1868", "fall": "ROIs1970", "winter": "ROIs2017"}
    places = [f"{seed}_{season}_{scene}_p7" for season, seed in regions.items() for scene in range(1, 150)]
    splits = list(sen12mscr.splits("", dict.fromkeys(places)).values())
    assert {name: splits.count(name) for name in ("val", "test")} == {"val": 10, "test": 10}


def test_sen12ms_land_cover_goes_with_both_sensors(tmp_path: Path) -> None:
    cover = np.zeros((4, 64, 64), np.uint16)
    cover[0, :32], cover[0, 32:60] = 17, 1
    for kind, pixels in (("s1", RADAR), ("s2", optical(1500)), ("lc", cover)):
        write_patch(tmp_path, "ROIs1868_summer", kind, 59, 763, pixels)
    places = sen12ms.places(str(tmp_path))
    radar, reflectance = sen12ms.tiles("ROIs1868_summer_59_p763", places["ROIs1868_summer_59_p763"], GRID)
    assert radar.site == reflectance.site
    assert load_sensor(radar.sensor).to_physical(radar.pixels).mean() == pytest.approx(-12.5)
    for tile in (radar, reflectance):
        found = tile.maps["igbp"]
        assert [sen12ms.IGBP[found.classes[row, 0]] for row in (0, 40)] == ["Water bodies", "Evergreen needleleaf forest"]
        assert found.is_labelled.mean() == 60 / 64
    write_patch(tmp_path, "ROIs1868_summer", "lc", 59, 763, cover + np.uint16(40))
    with pytest.raises(InputError, match=r"s?ROIs1868_summer_lc_59_p763.tif' has the values 40, 41, 57; expected 1, 2,"):
        sen12ms.tiles("ROIs1868_summer_59_p763", places["ROIs1868_summer_59_p763"], GRID)


def test_sen12ms_takes_the_published_lists_or_the_regions(tmp_path: Path) -> None:
    for scene in (1, 2, 3, 73):
        for patch in (10, 11):
            write_patch(tmp_path, "ROIs1868_summer", "s1", scene, patch, RADAR)
    places = sen12ms.places(str(tmp_path))
    by_region = sen12ms.splits(str(tmp_path), places)
    assert {place for place, split in by_region.items() if split == "test"} == {"ROIs1868_summer_73_p10", "ROIs1868_summer_73_p11"}
    (tmp_path / "test_list.txt").write_text("ROIs1868_summer_s2_1_p10.tif\nROIs1868_summer_s2_1_p11.tif\n")
    with pytest.raises(InputError, match=r"6 patches such as 'ROIs1868_summer_2_p10' are in none of train_list.txt, test_list.txt"):
        sen12ms.splits(str(tmp_path), places)
    rest = [f"ROIs1868_summer_s2_{scene}_p{patch}.tif" for scene in (2, 3, 73) for patch in (10, 11)]
    (tmp_path / "train_list.txt").write_text("\n".join(rest))
    listed = sen12ms.splits(str(tmp_path), places)
    assert {place for place, split in listed.items() if split == "test"} == {"ROIs1868_summer_1_p10", "ROIs1868_summer_1_p11"}
    scenes = [{split for place, split in listed.items() if f"_{scene}_p" in place} for scene in (2, 3, 73)]
    assert all(len(found) == 1 for found in scenes)
    assert set().union(*scenes) == {"train", "val"}
