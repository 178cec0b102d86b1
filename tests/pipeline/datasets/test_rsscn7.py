from pathlib import Path

import numpy as np
import pytest

from pipeline.chips import read_image
from pipeline.datasets import rsscn7
from pipeline.errors import InputError
from pipeline.grid import Grid
from tests.pipeline.datasets.files import truncate, write_image

GRID = Grid()


@pytest.mark.parametrize(("folder", "name"), [("Forest", "Forest"), ("eForest", "Forest"), ("dRiverLake", "RiverLake")])
def test_folders_say_the_class_with_and_without_a_letter(folder: str, name: str, tmp_path: Path) -> None:
    write_image(tmp_path / folder / "e001.jpg", np.full((128, 128, 3), 90, np.uint8))
    write_image(tmp_path / "Other" / "x001.jpg", np.full((128, 128, 3), 90, np.uint8))
    found = rsscn7.places(str(tmp_path))
    assert list(found) == [f"{name}/e001"]
    (tile,) = rsscn7.tiles(*next(iter(found.items())), GRID)
    assert rsscn7.CLASSES[int(tile.labels["rsscn7"])] == name
    assert tile.site == f"rsscn7/{name}/e001/r0c0"


def test_published_size_becomes_a_site(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 250, 400)[:, None], 400, 1)[..., None].repeat(3, -1).astype(np.uint8)
    write_image(tmp_path / "Grass" / "a001.jpg", ramp)
    found = rsscn7.places(str(tmp_path))
    (tile,) = rsscn7.tiles("Grass/a001", found["Grass/a001"], GRID)
    assert tile.pixels.shape == (3, 128, 128)
    assert np.allclose(tile.pixels[0, :, 5], np.linspace(0, 250, 128), atol=4)


def test_what_is_no_image_or_no_class_is_said(tmp_path: Path) -> None:
    write_image(tmp_path / "Grass" / "a001.jpg", np.full((128, 128, 3), 90, np.uint8))
    found = rsscn7.places(str(tmp_path))
    truncate(tmp_path / "Grass" / "a001.jpg")
    with pytest.raises(InputError, match=r"cannot read '.*a001.jpg'"):
        rsscn7.tiles("Grass/a001", found["Grass/a001"], GRID)
    with pytest.raises(InputError, match=r"expected <class>/<name>.jpg, classes Grass, Field"):
        rsscn7.places(str(tmp_path / "Forest"))


def test_real_images(shared_data: Path) -> None:
    found = rsscn7.places(str(shared_data / "rsscn7"))
    assert len(found) == 350
    place, (path, label) = next(iter(found.items()))
    (tile,) = rsscn7.tiles(place, (path, label), GRID)
    assert np.array_equal(tile.pixels, read_image(path, 3))
