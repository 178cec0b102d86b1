from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from pipeline.datasets import bigearthnet
from pipeline.datasets._corine import CLASSES_19, CLASSES_43, GROUP_OF
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate, write_tif

GRID = Grid(site_size_m=1200)
RADAR = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39"


def write_v2(root: Path, patch: str, radar: str | None = None) -> None:
    for band in load_sensor("sentinel2_l2a").bands:
        size = 1200 // int(band.gsd_m)
        transform = (band.gsd_m, 0, 373_200, 0, -band.gsd_m, 5_353_200)
        path = root / "BigEarthNet-S2" / patch.rsplit("_", 2)[0] / patch / f"{patch}_{band.name}.tif"
        write_tif(path, np.full((size, size), 1000 + int(band.gsd_m), np.uint16), transform=transform)
    if radar:
        for number, band_name in enumerate(("VV", "VH")):
            path = root / "BigEarthNet-S1" / radar.rsplit("_", 3)[0] / radar / f"{radar}_{band_name}.tif"
            write_tif(path, np.full((120, 120), -10.0 - number, np.float32), transform=(10, 0, 373_200, 0, -10, 5_353_200))


def row(patch: str, split: str, radar: str = "", labels: tuple[str, ...] = ("Arable land", "Inland waters")) -> dict:
    return {"patch_id": patch, "labels": list(labels), "split": split, "country": "Austria", "s1_name": radar, "s2v1_name": "x"}


def test_real_patches_pair_by_what_their_json_says(shared_data: Path) -> None:
    found = bigearthnet.places(str(shared_data / "bigearthnet"))
    assert len(found) == 10
    assert sum(len(patch.folders) == 2 for patch in found.values()) == 2
    name = "S2A_MSIL2A_20170617T113321_36_85"
    optical, radar = bigearthnet.tiles(name, found[name], GRID)
    assert (optical.sensor, radar.sensor) == ("sentinel2_l2a", "sentinel1_grd")
    assert (optical.site, optical.transform, optical.crs) == (radar.site, radar.transform, radar.crs)
    assert optical.time == datetime(2017, 6, 17, 11, 33, 21, tzinfo=UTC)
    assert radar.time == datetime(2017, 6, 17, 6, 47, 24, tzinfo=UTC)
    assert [CLASSES_43[int(i)] for i in optical.labels["bigearthnet_43"]] == ["Non-irrigated arable land", "Pastures"]
    assert [CLASSES_19[int(i)] for i in optical.labels["bigearthnet_19"]] == ["Arable land", "Pastures"]
    folder = Path(found[name].folders["sentinel2_l2a"])
    with rasterio.open(folder / f"{name}_B04.tif") as source:
        assert np.array_equal(optical.pixels[3], source.read(1))
    with rasterio.open(folder / f"{name}_B09.tif") as source:
        coarse = source.read(1)
    sixty = optical.pixels[load_sensor("sentinel2_l2a").band_names.index("B09")].reshape(20, 6, 20, 6).mean(axis=(1, 3))
    assert np.corrcoef(sixty.ravel(), coarse.ravel())[0, 1] > 0.99
    assert np.abs(sixty.mean() / coarse.mean() - 1) < 0.01
    late = "S2B_MSIL2A_20170924T93021_41_29"
    assert bigearthnet.tiles(late, found[late], GRID)[0].time == datetime(2017, 9, 24, 9, 30, 21, tzinfo=UTC)
    assert "bigearthnet_19" not in bigearthnet.tiles(late, found[late], Grid(600))[0].labels


def test_real_patches_without_a_published_split_go_by_acquisition(shared_data: Path) -> None:
    found = bigearthnet.places(str(shared_data / "bigearthnet"))
    splits = bigearthnet.splits("", found)
    assert splits["S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39"] == splits["S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_40"]
    assert set(splits) == set(found)
    assert set(splits.values()) == {"train", "val", "test"}


def test_v1_lists_pair_and_split_and_leave_the_rest_out(shared_data: Path, tmp_path: Path) -> None:
    for part in ("s1", "s2"):
        (tmp_path / part).symlink_to(shared_data / "bigearthnet" / part)
    (tmp_path / "bigearthnet-train.csv").write_text(
        "S2A_MSIL2A_20170617T113321_36_85,S1A_IW_GRDH_1SDV_20170617T064724_29UPU_36_85\nS2A_MSIL2A_20990101T000000_1_1,x\n"
    )
    (tmp_path / "bigearthnet-test.csv").write_text(
        "S2A_MSIL2A_20171221T112501_56_35,S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35\n"
    )
    found = bigearthnet.places(str(tmp_path))
    assert sum(len(patch.folders) == 2 for patch in found.values()) == 2
    assert bigearthnet.splits("", found) == {
        "S2A_MSIL2A_20170617T113321_36_85": "train", "S2A_MSIL2A_20171221T112501_56_35": "test",
    }  # fmt: skip


def test_v2_by_its_metadata(tmp_path: Path) -> None:
    first, second = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_61_39", "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_0_1"
    write_v2(tmp_path, first, RADAR)
    write_v2(tmp_path, second)
    rows = [row(first, "validation", RADAR), row(second, "train", "S1A_absent"), row("S2A_absent", "test")]
    pd.DataFrame(rows).to_parquet(tmp_path / "metadata.parquet")
    found = bigearthnet.places(str(tmp_path))
    assert bigearthnet.splits("", found) == {first: "val", second: "train"}
    optical, radar = bigearthnet.tiles(first, found[first], GRID)
    values = load_sensor("sentinel2_l2a").to_physical(optical.pixels).mean(axis=(1, 2))
    assert values == pytest.approx([(1000 + band.gsd_m) / 10_000 for band in load_sensor("sentinel2_l2a").bands], rel=1e-5)
    assert load_sensor("sentinel1_grd").to_physical(radar.pixels).mean(axis=(1, 2)).tolist() == pytest.approx([-10, -11])
    assert optical.labels == radar.labels == {"bigearthnet_19": [2, 17]}
    assert optical.maps == {}


def test_v2_reference_maps_are_no_patches(tmp_path: Path) -> None:
    """Their folders have the patches' names."""
    patch = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_61_39"
    write_v2(tmp_path, patch, RADAR)
    codes = np.full((120, 120), 211, np.uint16)
    codes[:30], codes[30:40], codes[40:50] = 512, 122, 999  # water bodies; roads, which are in none of the 19; no data
    reference = tmp_path / "Reference_Maps" / patch.rsplit("_", 2)[0] / patch / f"{patch}_reference_map.tif"
    write_tif(reference, codes, transform=(10, 0, 373_200, 0, -10, 5_353_200))
    pd.DataFrame([row(patch, "train", RADAR)]).to_parquet(tmp_path / "metadata.parquet")
    found = bigearthnet.places(str(tmp_path))[patch]
    tiles = bigearthnet.tiles(patch, found, GRID)
    assert [tile.sensor for tile in tiles] == ["sentinel2_l2a", "sentinel1_grd"]
    for tile in tiles:
        cover = tile.maps["bigearthnet_cover"]
        assert cover.is_labelled.sum(axis=1).tolist() == [120] * 30 + [0] * 20 + [120] * 70
        assert [CLASSES_19[cover.classes[line, 0]] for line in (0, 119)] == ["Inland waters", "Arable land"]
    assert bigearthnet.tiles(patch, found, Grid(600))[0].maps["bigearthnet_cover"].counts(19)[17] == 30 * 60
    write_tif(reference, codes[:60])
    with pytest.raises(InputError, match=r"BigEarthNet-S2/.*' is 120 x 120 px, expected 60 x 120 px"):
        bigearthnet.tiles(patch, found, GRID)


def test_faults_are_one_line(tmp_path: Path) -> None:
    patch = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_61_39"
    with pytest.raises(InputError, match="no BigEarthNet patch under"):
        bigearthnet.places(str(tmp_path))
    write_v2(tmp_path, patch)
    (tmp_path / "metadata.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"cannot read '.*metadata.parquet'"):
        bigearthnet.places(str(tmp_path))
    pd.DataFrame([row(patch, "holdout")]).to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(InputError, match="has split 'holdout'; expected train, validation, test"):
        bigearthnet.places(str(tmp_path))
    pd.DataFrame([row("S2A_absent", "train")]).to_parquet(tmp_path / "metadata.parquet")
    with pytest.raises(InputError, match=r"metadata.parquet' names none of the patches beside it"):
        bigearthnet.places(str(tmp_path))
    pd.DataFrame([row(patch, "train", labels=("Moon",))]).to_parquet(tmp_path / "metadata.parquet")
    found = bigearthnet.places(str(tmp_path))[patch]
    with pytest.raises(InputError, match="label 'Moon' is none of BigEarthNet's 19 classes"):
        bigearthnet.tiles(patch, found, GRID)
    band = Path(found.folders["sentinel2_l2a"]) / f"{patch}_B05.tif"
    truncate(band)
    with pytest.raises(InputError, match=r"cannot read '.*_B05.tif'"):
        bigearthnet.tiles(patch, found, Grid(600))
    band.unlink()
    with pytest.raises(InputError, match=r"cannot read '.*_B05.tif'"):
        bigearthnet.tiles(patch, found, Grid(600))


def test_groups_cover_the_nineteen_and_drop_eleven() -> None:
    assert (len(CLASSES_43), len(CLASSES_19), len(GROUP_OF)) == (43, 19, 32)
    assert set(GROUP_OF) < set(CLASSES_43)
    assert set(GROUP_OF.values()) == set(range(19))
