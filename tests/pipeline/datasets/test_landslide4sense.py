from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.datasets import landslide4sense
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import load_sensor
from tests.pipeline.datasets.files import truncate

GRID = Grid(site_size_m=1280)


def write_h5(path: Path, name: str, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[name] = values
    return path


def write_patch(root: Path, number: int) -> None:
    """Reflectance of 0.1, 20 degrees, 1500 m, as published: divided by the bands' means."""
    physical = np.array([1000.0] * 12 + [20.0, 1500.0])
    write_h5(root / "img" / f"image_{number}.h5", "img", np.tile(physical / landslide4sense.BAND_MEANS, (128, 128, 1)))
    mask = np.zeros((128, 128), np.uint8)
    mask[:16] = 1
    write_h5(root / "mask" / f"mask_{number}.h5", "mask", mask)


def test_published_form_in_physical_units(tmp_path: Path) -> None:
    for part in ("TrainData", "ValidData", "TestData"):
        write_patch(tmp_path / part, 1)
    found = landslide4sense.places(str(tmp_path))
    assert landslide4sense.splits("", found) == {"test/1": "test", "train/1": "train", "val/1": "val"}
    optical, elevation = landslide4sense.tiles("train/1", found["train/1"], GRID)
    assert optical.site == elevation.site
    assert np.unique(load_sensor(optical.sensor).to_physical(optical.pixels)).tolist() == pytest.approx([0.1])
    assert np.unique(load_sensor(elevation.sensor).to_physical(elevation.pixels)).tolist() == pytest.approx([1500])
    assert optical.maps["landslide"].counts(2) == elevation.maps["landslide"].counts(2) == [112 * 128, 16 * 128]


def test_the_other_published_folders(tmp_path: Path) -> None:
    write_patch(tmp_path, 3)
    for kind, parent in (("image", "images"), ("mask", "annotations")):
        source = tmp_path / ("img" if kind == "image" else "mask") / f"{kind}_3.h5"
        target = tmp_path / "hub" / parent / "validation" / source.name
        target.parent.mkdir(parents=True)
        source.rename(target)
    assert {place: sorted(files) for place, files in landslide4sense.places(str(tmp_path)).items()} == {"val/3": ["image", "mask"]}


def test_real_patches(shared_data: Path) -> None:
    found = landslide4sense.places(str(shared_data / "landslide4sense"))
    assert len(found) == 16
    assert set(landslide4sense.splits("", found).values()) == {"train", "val", "test"}
    tiles = [tile for place, files in found.items() for tile in landslide4sense.tiles(place, files, GRID)]
    optical = np.stack([load_sensor(t.sensor).to_physical(t.pixels) for t in tiles if t.sensor.endswith("optical")])
    medians = dict(zip(load_sensor("landslide4sense_optical").band_names, np.median(optical, axis=(0, 2, 3))))
    # Green land at the top of the atmosphere: blue haze, a dark red, a bright near infrared, and next to nothing in B10.
    assert 0.05 < medians["B02"] < 0.2
    assert medians["B08"] > 2 * medians["B04"]
    assert medians["B10"] < 0.005
    heights = np.stack([load_sensor(t.sensor).to_physical(t.pixels) for t in tiles if t.sensor.endswith("dem")])
    assert 0 <= heights.min() < heights.max() < 4000
    slid = sum(t.maps["landslide"].counts(2)[1] for t in tiles) / 2
    assert 0.001 < slid / (16 * 128 * 128) < 0.2


def test_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no Landslide4Sense patch under"):
        landslide4sense.places(str(tmp_path))
    write_patch(tmp_path, 1)
    found = landslide4sense.places(str(tmp_path))["all/1"]
    write_h5(Path(found["mask"]), "mask", np.zeros((64, 128), np.uint8))
    with pytest.raises(InputError, match=r"image_1.h5' is 128 x 128 px, expected 64 x 128 px"):
        landslide4sense.tiles("all/1", found, GRID)
    write_h5(Path(found["mask"]), "msk", np.zeros((128, 128), np.uint8))
    with pytest.raises(InputError, match=r"cannot read mask of '.*mask_1.h5'"):
        landslide4sense.tiles("all/1", found, GRID)
    write_h5(Path(found["image"]), "img", np.zeros((128, 128, 12)))
    with pytest.raises(InputError, match=r"has img of shape \(128, 128, 12\), expected \(y, x, 14\)"):
        landslide4sense.tiles("all/1", found, GRID)
    truncate(Path(found["image"]))
    with pytest.raises(InputError, match=r"cannot read img of '.*image_1.h5'"):
        landslide4sense.tiles("all/1", found, GRID)
