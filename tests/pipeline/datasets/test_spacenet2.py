from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import spacenet2
from pipeline.errors import InputError
from pipeline.grid import Grid
from tests.pipeline.datasets.files import truncate, write_tif

GRID = Grid(site_size_m=48)
PAN_DEG, WEST, NORTH = 2.7e-6, -115.30, 36.26
CHIP = "AOI_2_Vegas_img7"


def write_chip(root: Path, chip: str = CHIP, east_deg: float = 0.0, pan_px: float = 1.0) -> None:
    """Images of one function of the ground, cut to grids that are two and one PAN pixels apart; ratio 4."""
    west = WEST + east_deg
    columns, rows = np.meshgrid(np.arange(650) - 2, np.arange(650) + 1)
    pan = (200 + (columns // 4 + 3 * (rows // 4)) % 256).astype(np.uint16)
    ms = (200 + np.add.outer(3 * np.arange(162), np.arange(162)) % 256).astype(np.uint16)
    corner = (PAN_DEG * pan_px, 0, west - 2 * PAN_DEG, 0, -PAN_DEG * pan_px, NORTH - PAN_DEG)
    write_tif(root / "AOI_2_Vegas_Train" / "PAN" / f"PAN_{chip}.tif", pan, "EPSG:4326", corner)
    corner = (4 * PAN_DEG, 0, west, 0, -4 * PAN_DEG, NORTH)
    write_tif(
        root / "AOI_2_Vegas_Train" / "MUL" / f"MUL_{chip}.tif", np.stack([ms + np.uint16(b) for b in range(8)]), "EPSG:4326", corner
    )


def test_both_images_show_the_same_ground(tmp_path: Path) -> None:
    write_chip(tmp_path)
    ((chip, found),) = spacenet2.places(str(tmp_path)).items()
    tiles = {(t.sensor, t.site): t for t in spacenet2.tiles(chip, found, GRID)}
    sites = {site for _, site in tiles}
    assert (chip, len(sites), len(tiles)) == (CHIP, 16, 32)
    for site in sites:
        pan, ms = tiles["worldview3_pan", site], tiles["worldview3_ms", site]
        assert (pan.pixels.shape, ms.pixels.shape) == ((1, 160, 160), (8, 40, 40))
        under = np.kron(ms.pixels[0], np.ones((4, 4), np.uint16))
        assert np.array_equal(pan.pixels[0][pan.is_valid], under[pan.is_valid])
        bounds = [np.array(t.geometry.bounds) for t in (pan, ms) if t.geometry]
        assert np.abs(bounds[0] - bounds[1]).max() < PAN_DEG / 100
    # PAN begins a row further south than MUL: what it lacks there is not valid, and nothing else.
    top = tiles["worldview3_pan", f"spacenet2/{CHIP}/r0c0"].is_valid
    assert [bool(top[row].any()) for row in (0, 1)] == [False, True]
    assert top[1:].all()


def test_squares_of_ground_stay_together(tmp_path: Path) -> None:
    for number in range(12):
        write_chip(tmp_path, f"AOI_2_Vegas_img{number}", east_deg=0.002 + (number % 4) * 0.04 + (number // 4) * 0.002)
    splits = spacenet2.splits("", spacenet2.places(str(tmp_path)))
    for square in range(4):
        assert len({split for chip, split in splits.items() if int(chip.split("img")[1]) % 4 == square}) == 1
    assert set(splits.values()) == {"train", "val", "test"}


def test_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SpaceNet 2 chip under"):
        spacenet2.places(str(tmp_path))
    write_chip(tmp_path, pan_px=2)
    found = spacenet2.places(str(tmp_path))[CHIP]
    with pytest.raises(InputError, match=r"PAN_AOI_2_Vegas_img7.tif' has pixels 2.00 times finer than the MUL image, expected 4"):
        spacenet2.tiles(CHIP, found, GRID)
    truncate(Path(found["PAN"]))
    with pytest.raises(InputError, match=r"cannot read '.*PAN_AOI_2_Vegas_img7.tif'"):
        spacenet2.tiles(CHIP, found, GRID)
    with pytest.raises(InputError, match="chip 'AOI_2_Vegas_img7' has no MUL image"):
        spacenet2.tiles(CHIP, {"PAN": found["PAN"]}, GRID)
