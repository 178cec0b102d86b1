from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import levir_cd
from pipeline.errors import InputError
from pipeline.grid import Grid
from tests.pipeline.datasets.files import truncate, write_image

GRID = Grid(site_size_m=64)


def write_pair(root: Path, name: str, size: int = 256) -> None:
    for date, value in (("A", 40), ("B", 90)):
        write_image(root / date / f"{name}.png", np.full((256, 256, 3), value, np.uint8) + np.array([0, 1, 2], np.uint8))
    change = np.zeros((size, size), np.uint8)
    change[:128, :64] = 255
    write_image(root / "label" / f"{name}.png", change)


def test_dates_maps_and_published_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_pair(tmp_path / split, f"{split}_1")
    found = levir_cd.places(str(tmp_path))
    assert levir_cd.splits("", found) == {"test/test_1": "test", "train/train_1": "train", "val/val_1": "val"}
    tiles = levir_cd.tiles("train/train_1", found["train/train_1"], GRID)
    assert [(t.order, t.pixels[:, 0, 0].tolist()) for t in tiles[::4]] == [(0, [40, 41, 42]), (1, [90, 91, 92])]
    first = [t for t in tiles if t.site == "levir_cd/train/train_1/r0c0"]
    assert [t.maps["building_change"].counts(2) for t in first] == [[128 * 64, 128 * 64]] * 2
    assert sum(t.maps["building_change"].counts(2)[1] for t in tiles) == 2 * 128 * 64


def test_split_by_names_and_a_val_for_levir_cd_plus(tmp_path: Path) -> None:
    for number in range(10):
        write_pair(tmp_path / "plus" / ("test" if number < 3 else "train"), f"pair_{number}")
    splits = levir_cd.splits("", levir_cd.places(str(tmp_path / "plus")))
    assert {place for place, split in splits.items() if split == "test"} == {f"test/pair_{number}" for number in range(3)}
    assert set(splits.values()) == {"train", "val", "test"}
    write_pair(tmp_path / "flat", "test_4")
    assert levir_cd.splits("", levir_cd.places(str(tmp_path / "flat"))) == {"test/test_4": "test"}
    write_pair(tmp_path / "other", "pair_4")
    with pytest.raises(InputError, match=r"pair_4.png' does not say its split"):
        levir_cd.places(str(tmp_path / "other"))


def test_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no LEVIR-CD pair under"):
        levir_cd.places(str(tmp_path))
    write_pair(tmp_path / "train", "train_1", size=128)
    found = levir_cd.places(str(tmp_path))["train/train_1"]
    with pytest.raises(InputError, match=r"A/train_1.png' is 256 x 256 px, expected 128 x 128 px"):
        levir_cd.tiles("train/train_1", found, GRID)
    write_pair(tmp_path / "train", "train_1")
    truncate(tmp_path / "train" / "B" / "train_1.png")
    with pytest.raises(InputError, match=r"cannot read '.*B/train_1.png'"):
        levir_cd.tiles("train/train_1", found, GRID)
    (tmp_path / "train" / "label" / "train_1.png").unlink()
    with pytest.raises(InputError, match=r"cannot read '.*label/train_1.png'"):
        levir_cd.tiles("train/train_1", found, GRID)
