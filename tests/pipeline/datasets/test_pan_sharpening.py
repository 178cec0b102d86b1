"""Pairs of images in NumPy files: strips, sensors, refusals."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.datasets import pan_sharpening
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor

GRID = Grid(site_size_m=64)


def write(folder: Path, name: str, bands: int, side: int = 320, dtype: type = np.uint16) -> None:
    ms = 1 + np.broadcast_to(np.arange(side) // 32, (bands, side, side))
    np.savez(folder / f"{name}.npz", ms=ms.astype(dtype), pan=np.kron(ms[0], np.ones((4, 4))).astype(dtype), ratio=4)


def test_strips_cover_each_column_once_in_all_splits(tmp_path: Path) -> None:
    write(tmp_path, "WV2_a", 8)
    write(tmp_path, "GE1", 4, dtype=np.uint8)
    places = pan_sharpening.places(str(tmp_path))
    splits = pan_sharpening.splits("", places)
    seen: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for place in (p for p in places if p.startswith("WV2")):
        tiles = pan_sharpening.tiles(place, places[place], GRID)
        by_sensor = {name: [t for t in tiles if t.sensor == name] for name in ("worldview_ms", "worldview_pan")}
        assert [t.site for t in by_sensor["worldview_ms"]] == [t.site for t in by_sensor["worldview_pan"]]
        for ms, pan in zip(*by_sensor.values()):
            assert np.array_equal(np.kron(ms.pixels[0], np.ones((4, 4), np.uint16)), pan.pixels[0])
        seen[splits[place]] += sorted({int(t.pixels[0, 0, 0]) for t in by_sensor["worldview_ms"]})
    assert seen == {"train": [1, 2, 3, 4, 5, 6], "val": [7], "test": [8, 9, 10]}
    assert {t.sensor for t in pan_sharpening.tiles("GE1_0", places["GE1_0"], GRID)} == {"geoeye1_ms", "geoeye1_pan"}


def test_what_is_no_such_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pair of images under .*; expected WV2\*.npz or GE1\*.npz or IK\*.npz"):
        pan_sharpening.places(str(tmp_path))
    write(tmp_path, "GE1", 8)
    places = pan_sharpening.places(str(tmp_path))
    with pytest.raises(InputError, match=r"has shape \(8, 320, 320\), expected 4 bands of geoeye1_ms"):
        pan_sharpening.tiles("GE1_0", places["GE1_0"], GRID)
    np.savez(tmp_path / "GE1.npz", ms=np.ones((4, 64, 64)), pan=np.ones((128, 128)))
    with pytest.raises(InputError, match=r"has pan of \(128, 128\), expected 4 times ms of \(64, 64\)"):
        pan_sharpening.tiles("GE1_0", places["GE1_0"], GRID)


def test_real_images_are_whole(shared_data: Path) -> None:
    places = pan_sharpening.places(str(shared_data / "pansharpening"))
    tiles = [tile for place in places for tile in pan_sharpening.tiles(place, places[place], Grid(site_size_m=128))]
    assert {n: sum(t.sensor == n for t in tiles) for n in ("worldview_ms", "geoeye1_pan")} == {
        "worldview_ms": 25,
        "geoeye1_pan": 25,
    }
    assert all(tile.is_valid.all() for tile in tiles)
    low, high = load_sensor("worldview_ms").valid_range
    assert all(low <= t.pixels.min() and t.pixels.max() <= high for t in tiles if t.sensor == "worldview_ms")
