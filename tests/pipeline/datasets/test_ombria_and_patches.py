from pathlib import Path

import numpy as np
import pytest

from pipeline.chips import read_image
from pipeline.datasets import ombria, s2_patches
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate, write_image

GRID = Grid()


def write_place(root: Path, name: str) -> dict[str, str]:
    mask = np.zeros((64, 64), np.uint8)
    mask[:16] = 255
    write_image(root / "flood_mask" / f"{name}.png", mask)
    for date in ("before", "after"):
        write_image(root / f"s1_{date}" / f"{name}.png", np.zeros((64, 64), np.uint8))
        optical = np.full((64, 64, 3), 60, np.uint8)
        optical[:, :10] = 0
        write_image(root / f"s2_{date}" / f"{name}.png", optical)
    return ombria.places(str(root))


def test_ombria_black_is_missing_in_optical_and_dark_in_radar(tmp_path: Path) -> None:
    found = write_place(tmp_path / "event_x", "7")
    tiles = {(t.sensor, t.order): t for t in ombria.tiles("7", found["7"], GRID)}
    assert list(tiles) == [("ombria_sar", 0), ("ombria_sar", 1), ("ombria_optical", 0), ("ombria_optical", 1)]
    assert tiles["ombria_sar", 0].is_valid.all()
    assert tiles["ombria_optical", 1].is_valid.sum(axis=1).tolist() == [54] * 64
    for tile in tiles.values():
        assert tile.labels == {"flooded_fraction": 0.25}
        assert tile.maps["flooded"].counts(2) == [48 * 64, 16 * 64]


def test_ombria_members_that_are_missing_or_broken(tmp_path: Path) -> None:
    found = write_place(tmp_path / "train", "7")
    truncate(tmp_path / "train" / "s2_after" / "7.png")
    with pytest.raises(InputError, match=r"cannot read '.*s2_after/7.png'"):
        ombria.tiles("7", found["7"], GRID)
    (tmp_path / "train" / "s2_after" / "7.png").unlink()
    with pytest.raises(InputError, match="no OMBRIA place under"):
        ombria.places(str(tmp_path))


def test_ombria_on_real_chips(shared_data: Path) -> None:
    found = ombria.places(str(shared_data / "ombria"))
    assert len(found) == 108
    place = next(place for place in found if place.startswith("event_guyana/"))
    tiles = ombria.tiles(place, found[place], Grid(site_size_m=2560))
    flooded = read_image(Path(found[place]), 1)[0] > 0
    assert all(np.array_equal(tile.maps["flooded"].classes == 1, flooded) for tile in tiles)


def test_ombria_holds_out_events_beside_the_training_set() -> None:
    places = {f"{name}/{n}": "" for name, count in (("train", 40), ("event_x", 5), ("event_y", 3)) for n in range(count)}
    found = ombria.splits("", places)
    assert found.keys() == places.keys()
    assert {place for place, split in found.items() if split == "test"} == {p for p in places if not p.startswith("train/")}
    assert 2 <= sum(split == "val" for split in found.values()) <= 25
    alone = ombria.splits("", {place: "" for place in places if place.startswith("train/")})
    assert set(alone.values()) == {"train", "val", "test"}


def test_ombria_keeps_runs_of_neighbours_together() -> None:
    numbers = {f"train/{n:04d}": "" for n in range(1, 800, 8)}
    for found in (ombria.splits("", numbers), ombria.splits("", numbers | {"event_x/1": ""})):
        runs: dict[int, set[str]] = {}
        for place in numbers:
            runs.setdefault(int(place.removeprefix("train/")) // 25, set()).add(found[place])
        assert all(len(splits) == 1 for splits in runs.values())
        assert {"train", "val"} <= set.union(*runs.values())


def write_patches(folder: Path, pixels: np.ndarray, bands: list[str]) -> Path:
    np.savez(folder / "patches.npz", image=pixels, bands=np.array(bands), id=np.array([f"p{n}" for n in range(len(pixels))]))
    return folder / "patches.npz"


def test_patches_in_any_order_of_bands_and_without_filled_ones(tmp_path: Path) -> None:
    bands = list(load_sensor("sentinel2_l2a").band_names)[::-1]
    pixels = np.tile(np.arange(1, 13, dtype=np.uint16)[None, :, None, None] * 100, (2, 1, 64, 64))
    pixels[1, 4, :, :8] = 0
    write_patches(tmp_path, pixels, bands)
    found = s2_patches.places(str(tmp_path))
    first, second = (s2_patches.tiles(place, found[place], GRID)[0] for place in ("p0", "p1"))
    assert first.pixels[:, 0, 0].tolist() == list(range(1200, 0, -100))
    assert second.is_valid.sum(axis=1).tolist() == [56] * 64
    path = write_patches(tmp_path, pixels, [*bands[:-1], "B02"])
    with pytest.raises(InputError, match=r"patches.npz' has bands .*, expected B01, "):
        s2_patches.tiles("p0", found["p0"], GRID)
    truncate(path)
    with pytest.raises(InputError, match=r"cannot read '.*patches.npz'"):
        s2_patches.places(str(tmp_path))
