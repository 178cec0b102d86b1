"""Reading and cutting of ready-made chips."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.chips import Chip, cut_tiles, read_bands, read_chip, resample
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import map_of
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import write_tif


def test_bands_of_other_grids_lie_on_the_same_ground(tmp_path: Path) -> None:
    """A plane stays that plane where it is interpolated; a missing coarse pixel takes all that is made from it with it."""
    x = np.arange(24) + 0.5
    fine = np.tile(x, (24, 1)).astype(np.float32)
    coarse = fine.reshape(12, 2, 12, 2).mean(axis=(1, 3))
    write_tif(tmp_path / "fine.tif", fine)
    write_tif(tmp_path / "coarse.tif", coarse, transform=(20, 0, 500_000, 0, -20, 5_000_000))
    chip = read_bands([tmp_path / "coarse.tif", tmp_path / "fine.tif"])
    assert chip.transform[0] == 10
    np.testing.assert_allclose(chip.pixels[0][:, 1:-1], chip.pixels[1][:, 1:-1], rtol=1e-6)
    assert chip.is_valid.all()
    coarse[5, 5] = 0
    write_tif(tmp_path / "coarse.tif", coarse, transform=(20, 0, 500_000, 0, -20, 5_000_000))
    missing = ~read_bands([tmp_path / "coarse.tif", tmp_path / "fine.tif"]).is_valid
    assert missing[9:13, 9:13].all()
    assert missing.sum() == 16


def test_bands_of_other_ground_are_refused(tmp_path: Path) -> None:
    fine = write_tif(tmp_path / "fine.tif", np.ones((24, 24), np.uint16))
    coarse = write_tif(tmp_path / "coarse.tif", np.ones((12, 12), np.uint16), transform=(20, 0, 500_000, 0, -20, 5_000_030))
    with pytest.raises(InputError, match=r"coarse.tif' lies 3.0 px from what belongs to it, expected the same grid"):
        read_bands([fine, coarse])
    coarse = write_tif(tmp_path / "coarse.tif", np.ones((12, 12), np.uint16), "EPSG:32634", (20, 0, 500_000, 0, -20, 5_000_000))
    with pytest.raises(InputError, match=r"coarse.tif' is in EPSG:32634, expected EPSG:32633"):
        read_bands([fine, coarse])
    assert read_bands([fine, coarse], placed=False).is_valid.all()


def test_content_moves_by_the_shift_and_what_comes_from_outside_is_not_valid(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(1, 33, dtype=np.float32), (32, 1))
    write_tif(tmp_path / "a.tif", ramp)
    chip = read_bands([tmp_path / "a.tif"], shift_px=(0.0, 2.5))
    np.testing.assert_allclose(chip.pixels[0][:, 3:], ramp[:, 3:] - 2.5, rtol=1e-6)
    assert chip.is_valid.all(axis=0).tolist() == [False, False] + [True] * 30
    assert resample(ramp, (32, 32)) is ramp


@pytest.mark.parametrize(("zeros", "valid"), [("any", [0, 0, 0, 1]), ("all", [0, 1, 1, 1]), ("data", [1, 1, 1, 1])])
def test_zeros_mean_what_the_layout_says(zeros, valid: list[int], tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 5, 5]], [[0, 5, 0, 5]]], np.uint16)
    assert read_chip(write_tif(tmp_path / "a.tif", pixels), 2, zeros=zeros).is_valid[0].tolist() == valid
    stated = read_chip(write_tif(tmp_path / "b.tif", pixels, nodata=7), 2, zeros=zeros)
    assert stated.is_valid.all()


def test_cut_leaves_out_windows_that_are_mostly_no_data() -> None:
    pixels, is_valid = np.full((1, 128, 192), 9, np.uint8), np.ones((128, 192), bool)
    is_valid[:64, :45] = False
    chip = Chip(pixels, is_valid)
    tiles = cut_tiles(chip, load_sensor("ombria_sar"), Grid(), "site", "scene", labels=lambda w: {"row": float(w[0].start)})
    assert [tile.site for tile in tiles] == ["site/r0c1", "site/r0c2", "site/r1c0", "site/r1c1", "site/r1c2"]
    assert [tile.labels["row"] for tile in tiles] == [0, 0, 64, 64, 64]


def test_codes_that_nobody_named_are_an_error() -> None:
    codes = np.array([[4, 5], [5, 255]])
    found = map_of(codes, {4: 0, 5: 1}, (255,))
    assert found.counts(2) == [1, 2]
    assert found.is_labelled.tolist() == [[True, True], [True, False]]
    with pytest.raises(InputError, match="label has the values 255; expected 4, 5"):
        map_of(codes, {4: 0, 5: 1})
