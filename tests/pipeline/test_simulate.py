import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import InputError
from pipeline.sensors import load_sensor
from pipeline.simulate import SimulateConfig, simulate

SMALL = SimulateConfig(size_m=1280, satellite_dates=1, aerial_dates=0, num_changes=0)


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((folder / "scenes").glob("*.tif")):
        with rasterio.open(path) as source:
            found[path.stem] = source.read()
    return found


def test_same_seed_same_pixels_and_nothing_twice(tmp_path: Path) -> None:
    simulate(tmp_path / "a", SMALL)
    simulate(tmp_path / "b", SMALL)
    simulate(tmp_path / "c", SMALL.model_copy(update={"seed": 1}))
    first, second, other = (pixels(tmp_path / name) for name in "abc")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if name in other)
    stamp = (tmp_path / "a" / "simulate.json").stat().st_mtime_ns
    simulate(tmp_path / "a", SMALL)
    assert (tmp_path / "a" / "simulate.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another planet"):
        simulate(tmp_path / "a", SMALL.model_copy(update={"seed": 1}))


def scene(planet: Path, pattern: str, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return physical values (band, y, x) and validity of one scene."""
    path = [p for p in sorted((planet / "scenes").glob(pattern)) if not p.stem.endswith("_cloud")][index]
    with rasterio.open(path) as source:
        stored = source.read()
        return stored * source.scales[0] + source.offsets[0], (stored != source.nodata).all(axis=0)


def test_reflectance_is_in_range_whatever_the_files_offset(planet: Path) -> None:
    offsets = set()
    for path in sorted((planet / "scenes").glob("sentinel2_l2a*.tif")):
        if path.stem.endswith("_cloud"):
            continue
        with rasterio.open(path) as source:
            offsets.add(source.offsets[0])
            assert source.descriptions == load_sensor("sentinel2_l2a").band_names
    assert len(offsets) == 2
    medians = []
    for index in range(2):
        values, is_valid = scene(planet, "sentinel2_l2a*.tif", index)
        assert values[:, is_valid].min() > -0.1
        medians.append(np.median(values[:, is_valid], axis=1))
    assert np.abs(medians[0] - medians[1]).max() < 0.1


def test_speckle_has_the_stated_looks(planet: Path) -> None:
    """Over still water backscatter is one constant times gamma noise: mean^2 / variance is the number of looks."""
    values, is_valid = scene(planet, "sentinel1_grd*.tif")
    power = np.where(is_valid, 10 ** (values[0] / 10), np.nan)
    blocks = [power[i : i + 8, j : j + 8] for i in range(0, power.shape[0] - 8, 8) for j in range(0, power.shape[1] - 8, 8)]
    looks = np.array([np.mean(b) ** 2 / np.var(b) for b in blocks if np.isfinite(b).all()])
    assert 3 < np.percentile(looks, 85) < 8


def test_truth_names_every_scene_and_the_reference_is_right(planet: Path) -> None:
    truth = json.loads((planet / "truth" / "scenes.json").read_text())
    assert set(truth) == {p.stem for p in (planet / "scenes").glob("*.tif") if not p.stem.endswith("_cloud")}
    first = min((n for n in truth if n.startswith("sentinel2")), key=lambda n: truth[n]["time"])
    assert (truth[first]["shift_x_m"], truth[first]["shift_y_m"]) == (0, 0)
    assert max(np.hypot(t["shift_x_m"], t["shift_y_m"]) for t in truth.values()) > 3


def test_land_cover_changes_only_where_the_changes_are(planet: Path) -> None:
    before, after = sorted((planet / "truth").glob("landcover_*.tif"))
    changes = json.loads((planet / "truth" / "changes.geojson").read_text())["features"]
    with rasterio.open(before) as first, rasterio.open(after) as second:
        is_different = first.read(1) != second.read(1)
    assert changes
    assert 0 < is_different.mean() < 0.2
