"""Vaihingen and Potsdam."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import _isprs, isprs_potsdam, isprs_vaihingen
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate, write_tif

COLOURS = np.array([*_isprs.COLOURS.values(), (0, 0, 0)], np.uint8)
POTSDAM = (0.05, 0, 366_676, 0, -0.05, 5_808_090)


def colours(size: int) -> np.ndarray:
    """Seven bands of columns: the six classes and the black border of the version without boundaries."""
    index = np.arange(size) * 7 // size
    return np.repeat(COLOURS[index].T[:, None], size, axis=1)


def image(num_bands: int, size: int) -> np.ndarray:
    return np.stack([np.full((size, size), 10 * band, np.uint8) for band in range(num_bands)])


def write_vaihingen(root: Path, area: str) -> dict[str, str]:
    write_tif(root / "top" / f"top_mosaic_09cm_{area}.tif", image(3, 140), crs=None)
    write_tif(root / "dsm" / f"dsm_09cm_matching_{area}.tif", np.full((140, 140), 271.37, np.float32), crs=None)
    write_tif(root / "gts_for_participants" / f"top_mosaic_09cm_{area}.tif", colours(140), crs=None)
    return isprs_vaihingen.places(str(root))[area]


def write_potsdam(root: Path, row: int, column: int, missing_rows: int = 0) -> dict[str, str]:
    name = f"{row}_{column}"
    write_tif(root / "4_Ortho_RGBIR" / f"top_potsdam_{name}_RGBIR.tif", image(4, 140), transform=POTSDAM)
    heights = np.full((140 - missing_rows, 140), 95.5, np.float32)
    write_tif(root / "1_DSM" / f"dsm_potsdam_{row:02}_{column}.tif", heights, transform=POTSDAM)
    write_tif(root / "5_Labels_all" / f"top_potsdam_{name}_label.tif", colours(140), transform=POTSDAM)
    return isprs_potsdam.places(str(root))[name]


def test_vaihingen_image_height_and_classes(tmp_path: Path) -> None:
    found = write_vaihingen(tmp_path, "area1")
    optical, height = isprs_vaihingen.tiles("area1", found, Grid(site_size_m=12.6))
    assert optical.pixels[:, 0, 0].tolist() == [0, 10, 20]
    assert optical.is_valid.all()  # dark is not missing
    assert load_sensor(optical.sensor).band_names == ("nir", "red", "green")
    assert load_sensor(height.sensor).to_physical(height.pixels).mean() == pytest.approx(271.37, abs=0.005)
    assert optical.site == height.site
    labels = isprs_vaihingen.LABELS["isprs"].classes
    found_map = optical.maps["isprs"]
    assert [labels[found_map.classes[0, 20 * i + 10]] for i in range(6)] == list(_isprs.COLOURS)
    assert found_map.is_labelled[0].tolist() == [True] * 120 + [False] * 20


def test_potsdam_lies_on_the_ground_and_short_heights_are_filled_with_no_data(tmp_path: Path) -> None:
    found = write_potsdam(tmp_path, 2, 10, missing_rows=1)
    optical, height = isprs_potsdam.tiles("2_10", found, Grid(site_size_m=7))
    assert (optical.crs, optical.transform) == ("EPSG:32633", POTSDAM)
    assert (optical.site, optical.transform) == (height.site, height.transform)
    assert height.is_valid.sum() == 139 * 140
    assert not height.is_valid[-1].any()
    assert load_sensor(height.sensor).to_physical(height.pixels)[0, 0, 0] == pytest.approx(95.5)
    with pytest.raises(InputError, match=r"dsm_potsdam_03_10.tif' is 130 x 140 px, expected 140 x 140 px"):
        isprs_potsdam.tiles("3_10", write_potsdam(tmp_path, 3, 10, missing_rows=10), Grid(site_size_m=7))


def test_labels_with_all_pixels_before_eroded_ones(tmp_path: Path) -> None:
    found = write_potsdam(tmp_path, 2, 10)
    whole = Path(found["label"])
    eroded = write_tif(tmp_path / "5_Labels_noBoundary" / "top_potsdam_2_10_label_noBoundary.tif", colours(140), transform=POTSDAM)
    assert isprs_potsdam.places(str(tmp_path))["2_10"]["label"] == str(whole)
    whole.unlink()
    assert isprs_potsdam.places(str(tmp_path))["2_10"]["label"] == str(eroded)
    whole = Path(write_vaihingen(tmp_path, "area1")["label"])
    eroded = write_tif(tmp_path / "eroded" / "top_mosaic_09cm_area1_noBoundary.tif", colours(140), crs=None)
    assert isprs_vaihingen.places(str(tmp_path))["area1"]["label"] == str(whole)
    whole.unlink()
    assert isprs_vaihingen.places(str(tmp_path))["area1"]["label"] == str(eroded)


@pytest.mark.parametrize(("layout", "num_train", "num_test"), [(isprs_vaihingen, 16, 17), (isprs_potsdam, 24, 14)])
def test_published_splits_with_some_of_train_held_out(layout, num_train: int, num_test: int) -> None:
    areas = {area: {} for area in (*layout.TRAIN, *layout.TEST)}
    splits = layout.splits("", areas)
    assert (len(areas), len(layout.TEST)) == (num_train + num_test, num_test)
    assert {area for area, split in splits.items() if split == "test"} == set(layout.TEST)
    assert 1 <= list(splits.values()).count("val") <= num_train // 3
    with pytest.raises(InputError, match="area 'moon' is none of the"):
        layout.splits("", {"moon": {}})


def test_faults_are_one_line(tmp_path: Path) -> None:
    for layout in (isprs_potsdam, isprs_vaihingen):
        with pytest.raises(InputError, match=r"no (Potsdam|Vaihingen) area under"):
            layout.places(str(tmp_path))
    found = write_vaihingen(tmp_path, "area3")
    with pytest.raises(InputError, match=r"area 'isprs_vaihingen/area3' has no height \(has image, label\)"):
        isprs_vaihingen.tiles("area3", {k: v for k, v in found.items() if k != "height"}, Grid(site_size_m=12.6))
    truncate(Path(found["label"]), 0.3)
    with pytest.raises(InputError, match=r"cannot read '.*gts_for_participants/top_mosaic_09cm_area3.tif'"):
        isprs_vaihingen.tiles("area3", found, Grid(site_size_m=12.6))
