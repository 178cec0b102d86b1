import numpy as np
import pytest
from scipy import ndimage

from pipeline.registration import MIN_CONFIDENCE, estimate_shift

GSD_M = 10.0
VALID = np.ones((320, 320), bool)


def texture(seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(360, 360)), 2)


def inner(image: np.ndarray) -> np.ndarray:
    return image[None, 20:-20, 20:-20]


@pytest.mark.parametrize(("rows", "columns"), [(0.3, -0.7), (1.5, 3.2), (0.5, 0.5), (-4.25, 2.0)])
def test_known_shift_is_found(rows: float, columns: float) -> None:
    """Content moved down by `rows` and right by `columns` must move north and west to come back."""
    image = texture(0)
    found = estimate_shift(inner(image), inner(ndimage.shift(image, (rows, columns))), VALID, VALID, GSD_M, 100)
    assert found.shift_x_m == pytest.approx(-columns * GSD_M, abs=1.0)
    assert found.shift_y_m == pytest.approx(rows * GSD_M, abs=1.0)
    assert found.confidence > 0.8


def test_other_radiometry_does_not_matter() -> None:
    image = texture(1)
    moved = 5 - 3 * ndimage.shift(image, (2, -1))
    found = estimate_shift(inner(image), inner(moved), VALID, VALID, GSD_M, 100)
    assert (found.shift_x_m, found.shift_y_m) == pytest.approx((10, 20), abs=1.0)


def test_unrelated_images_are_not_moved() -> None:
    found = estimate_shift(inner(texture(0)), inner(texture(1)), VALID, VALID, GSD_M, 100)
    assert found.shift_m == (0.0, 0.0)
    assert found.confidence < MIN_CONFIDENCE
    assert "1 of 16 windows agree" in found.reason


def test_flat_or_disjoint_images_are_not_moved() -> None:
    image, flat, nowhere = inner(texture(0)), np.ones((1, 320, 320)), np.zeros_like(VALID)
    for found in (
        estimate_shift(image, flat, VALID, VALID, GSD_M, 100),
        estimate_shift(image, image, VALID, nowhere, GSD_M, 100),
    ):
        assert found.shift_m == (0.0, 0.0)
        assert found.confidence == 0
        assert found.reason in ("flat image", "no common valid area")


def test_shift_beyond_the_limit_is_not_applied() -> None:
    image = texture(0)
    found = estimate_shift(inner(image), inner(ndimage.shift(image, (0, 9))), VALID, VALID, GSD_M, 50)
    assert found.shift_m == (0.0, 0.0)
