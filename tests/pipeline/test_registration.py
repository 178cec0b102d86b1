"""The estimator against shifts and displacements that are known, and against pairs that must not be moved."""

import numpy as np
import pytest
from scipy import ndimage

from pipeline.registration import MIN_CONFIDENCE, match
from tests.bench.simulated_pairs import Pair, half_hidden, spoiled

VALID = np.ones((320, 320), bool)
MIDDLE = np.array([[160.0, 160.0]])


def texture(seed: int, size: int = 360) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 2).astype(np.float32)


def inner(image: np.ndarray) -> np.ndarray:
    return image[None, 20:-20, 20:-20]


@pytest.mark.parametrize(("rows", "columns"), [(0.3, -0.7), (1.5, 3.2), (0.5, 0.5), (-4.25, 2.0)])
def test_known_shift_is_found_to_a_fiftieth_of_a_pixel(rows: float, columns: float) -> None:
    """No preference for whole pixels: content moved by (rows, columns) is found there."""
    image = texture(0)
    moved = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(image), (rows, columns))).real
    found = match(inner(image), inner(moved), VALID, VALID, 10)
    assert found.field is not None
    assert found.field.kind == "shift"
    assert found.field.at(MIDDLE)[0] == pytest.approx((rows, columns), abs=0.02)
    assert found.confidence > 0.99


def test_opposite_and_uneven_contrast_does_not_matter() -> None:
    """An edge is the same edge whichever side is bright, and however bright: what makes radar and optical comparable."""
    image, brightness = texture(1), ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(360, 360)), 30) * 40
    moved = 5 - np.exp(brightness) * ndimage.shift(image, (2, -1))
    found = match(inner(image), inner(moved), VALID, VALID, 10)
    assert found.field is not None
    assert found.field.at(MIDDLE)[0] == pytest.approx((2, -1), abs=0.1)


def test_affine_displacement_is_found_everywhere() -> None:
    image = texture(3)
    slopes = np.array([[1.006, -0.004], [0.003, 0.994]])
    moved = ndimage.affine_transform(image, np.linalg.inv(slopes), np.array([180, 180]) - np.linalg.inv(slopes) @ (182, 179))
    found = match(inner(image), inner(moved), VALID, VALID, 10)
    places = np.array([(40.0, 40.0), (40.0, 280.0), (160.0, 160.0), (280.0, 280.0)])
    index = places + 20 - 0.5  # places count from the corner of the cut-out, array indices from the first pixel's centre
    truth = (index - 180) @ slopes.T + (182, 179) - index
    assert found.field is not None
    assert found.field.kind == "affine"
    assert np.abs(found.field.at(places) - truth).max() < 0.1


def test_local_displacement_is_found_where_the_windows_show_it() -> None:
    image = texture(4, 840)
    y, x = np.mgrid[0:840, 0:840]
    bump = 1.5 * np.exp(-((y - 420) ** 2 + (x - 420) ** 2) / (2 * 150**2))
    moved = ndimage.map_coordinates(image, (y - bump, x.astype(float)), order=3)
    valid = np.ones((800, 800), bool)
    found = match(inner(image), inner(moved), valid, valid, 10)
    assert found.field is not None
    assert found.field.kind == "local"
    shown = found.field.at(np.array([(400.5, 400.5), (400.5, 60.5)]))
    assert shown[0] == pytest.approx((1.5, 0), abs=0.25)
    assert shown[1] == pytest.approx((0.11, 0), abs=0.15)


def test_stretched_image_is_found_only_where_so_large_a_shift_is_allowed() -> None:
    image = texture(5)
    moved = ndimage.affine_transform(image, np.array([1.15, 0.9]), mode="nearest")
    found = match(inner(image), inner(moved), VALID, VALID, 80)
    places = np.array([(100.0, 100.0), (200.0, 250.0)])
    truth = (places + 19.5) / (1.15, 0.9) - (places + 19.5)
    assert found.field is not None
    assert np.abs(found.field.at(places) - truth).max() < 0.3
    assert match(inner(image), inner(moved), VALID, VALID, 10).field is None


def test_outliers_do_not_move_the_rest() -> None:
    """A quarter of the ground that went elsewhere is refused, not averaged in."""
    image, other = texture(6), texture(7)
    moved = ndimage.shift(image, (1.25, 0.5))
    moved[:200, :200] = other[:200, :200]
    found = match(inner(image), inner(moved), VALID, VALID, 10)
    assert found.field is not None
    assert found.field.at(np.array([(250.0, 250.0)]))[0] == pytest.approx((1.25, 0.5), abs=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_other_places_are_not_moved(seed: int) -> None:
    found = match(inner(texture(seed)), inner(texture(seed + 100)), VALID, VALID, 10)
    assert found.field is None
    assert found.confidence < MIN_CONFIDENCE
    assert found.reason.startswith(("low confidence", "no three of", "shift at the search limit"))


def test_flat_or_empty_images_are_not_moved() -> None:
    image, flat, nowhere = inner(texture(0)), np.ones((1, 320, 320)), np.zeros_like(VALID)
    for found, reason in (
        (match(image, flat, VALID, VALID, 10), "flat image"),
        (match(image, image, VALID, nowhere, 10), "hardly any valid pixels"),
    ):
        assert found.field is None
        assert found.confidence == 0
        assert found.reason == reason


def test_image_that_is_flat_but_for_a_corner_is_not_moved() -> None:
    """No window shows anything in both: no exception, no shift."""
    image, corner = inner(texture(0)), np.zeros((1, 320, 320), np.float32)
    corner[0, :2, :2] = 5.0
    for found in (match(image, corner, VALID, VALID, 10), match(corner, corner[:, ::-1].copy(), VALID, VALID, 10)):
        assert found.field is None
        assert found.confidence < MIN_CONFIDENCE


def test_shift_beyond_the_limit_is_not_applied() -> None:
    image = texture(0)
    found = match(inner(image), inner(ndimage.shift(image, (0, 9))), VALID, VALID, 5)
    assert found.field is None


@pytest.mark.parametrize("size", [160, 320])
def test_cloud_haze_and_noise_that_no_mask_tells_of_are_not_moved(size: int) -> None:
    rng, valid = np.random.default_rng(0), np.ones((size, size), bool)
    for seed in range(3):
        image = texture(seed, size)[None]
        pair = Pair("test", image, image, valid, valid, np.zeros(2), 10)
        for kind, spoilt in spoiled(pair, rng):
            found = match(spoilt.reference, spoilt.moving, valid, valid, 10)
            assert found.field is None, kind
            assert found.confidence < MIN_CONFIDENCE
            assert found.reason


def test_ground_between_clouds_that_no_mask_tells_of_is_found_or_left() -> None:
    rng, image = np.random.default_rng(0), texture(0)
    moved = inner(np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(image), (1.5, -2.25))).real.astype(np.float32))
    pair = Pair("test", inner(image), moved, VALID, VALID, np.array([1.5, -2.25]), 10)
    half = half_hidden(pair, 0.5, rng)
    found = match(half.reference, half.moving, VALID, VALID, 10)
    assert found.field is not None
    assert found.field.at(MIDDLE)[0] == pytest.approx((1.5, -2.25), abs=0.1)
    for _ in range(5):
        most = half_hidden(pair, 0.95, rng)
        found = match(most.reference, most.moving, VALID, VALID, 10)
        assert found.field is None or found.field.at(MIDDLE)[0] == pytest.approx((1.5, -2.25), abs=0.5)
