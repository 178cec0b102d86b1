"""Metrics of restored images: worked numbers, formulas written naively, independent libraries."""

import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import from_numpy
from torchmetrics.functional.image import spectral_angle_mapper

from jobs.evaluation.hypercomplex import q2n
from jobs.evaluation.image_metrics import (
    LAPLACIAN,
    differences,
    ergas,
    full_resolution,
    psnr,
    reduced_resolution,
    sam,
    scaled,
    scc,
    ssim,
)

RNG = np.random.default_rng(5)
TRUE = RNG.uniform(0.1, 0.9, (4, 48, 40))
FOUND = np.clip(TRUE + 0.08 * RNG.standard_normal(TRUE.shape), 0, 1)
ALL = np.ones(TRUE.shape[1:], bool)


def test_scaled_clips_first() -> None:
    assert scaled(np.array([-30.0, -25.0, -12.5, 0.0, 3.0]), (-25, 0)).tolist() == [0, 0, 0.5, 1, 1]


def test_worked_numbers() -> None:
    true = np.array([[[0.3, 0.0]], [[0.4, 0.0]]])
    found = np.array([[[0.4, 0.1]], [[0.3, 0.2]]])
    everywhere = np.ones((1, 2), bool)
    # (3, 4) against (4, 3): cosine 24 / 25; the other pixel is dark in the truth and has no angle.
    assert sam(found, true, everywhere) == pytest.approx(np.degrees(np.arccos(0.96)), abs=1e-9)
    assert np.isnan(sam(found, np.zeros_like(true), everywhere))
    assert psnr(0.1) == pytest.approx(20)
    assert psnr(0.0) == np.inf
    # RMSE 0.2 of mean 0.5 and 0.1 of mean 1: 25 * sqrt((0.16 + 0.01) / 2).
    flat = np.stack([np.full((4, 4), 0.5), np.ones((4, 4))])
    apart = np.stack([np.full((4, 4), 0.7), np.full((4, 4), 0.9)])
    assert ergas(apart, flat, 4) == pytest.approx(25 * np.sqrt(0.085), abs=1e-6)


def test_differences_agree_with_independent_libraries() -> None:
    found = differences(FOUND, TRUE, ALL)
    assert found["mae"] == pytest.approx(np.mean([abs(a - b) for a, b in zip(FOUND.ravel(), TRUE.ravel())]), abs=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(((FOUND - TRUE) ** 2).mean()), abs=1e-6)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(TRUE, FOUND, data_range=1), abs=1e-6)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert found["ssim"] == pytest.approx(structural_similarity(TRUE, FOUND, channel_axis=0, data_range=1, **gaussian), abs=1e-6)
    angles = spectral_angle_mapper(from_numpy(FOUND)[None], from_numpy(TRUE)[None])
    assert found["sam"] == pytest.approx(np.degrees(float(angles)), abs=1e-6)


def test_what_is_not_valid_does_not_count() -> None:
    is_valid = ALL.copy()
    is_valid[10:14, 12] = False
    spoilt, truth = FOUND.copy(), TRUE.copy()
    spoilt[:, ~is_valid], truth[:, ~is_valid] = 0.77, np.nan
    found, plain = differences(spoilt, truth, is_valid), differences(FOUND, TRUE, ALL)
    assert found["mae"] == pytest.approx(np.abs(FOUND - TRUE)[:, is_valid].mean(), abs=1e-12)
    assert found["ssim"] == pytest.approx(plain["ssim"], abs=0.02)
    assert found["ssim"] != plain["ssim"]
    assert np.isnan(ssim(FOUND, TRUE, ~is_valid))


def test_ergas_and_scc_agree_with_their_formulas() -> None:
    bands = [np.mean((f - t) ** 2) / t.mean() ** 2 for f, t in zip(FOUND, TRUE)]
    assert ergas(FOUND, TRUE, 4) == pytest.approx(100 / 4 * np.sqrt(np.mean(bands)), abs=1e-6)
    detail = [[convolve2d(band, LAPLACIAN, "valid").ravel() for band in image] for image in (FOUND, TRUE)]
    assert scc(FOUND, TRUE) == pytest.approx(np.mean([np.corrcoef(f, t)[0, 1] for f, t in zip(*detail)]), abs=1e-6)
    assert scc(TRUE, np.ones_like(TRUE)) == 0


def _uiqi(x: np.ndarray, y: np.ndarray) -> float:
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 4 * covariance * x.mean() * y.mean() / ((x.var() + y.var()) * (x.mean() ** 2 + y.mean() ** 2))


def _normalised(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    level, spread = true.mean((1, 2), keepdims=True), true.std((1, 2), ddof=1, keepdims=True)
    return (found - level) / spread + 1, (true - level) / spread + 1


def _index(covariance: float, a: np.ndarray, b: np.ndarray) -> float:
    size = [float((image.mean((1, 2)) ** 2).sum()) for image in (a, b)]
    variance = a.var((1, 2)).sum() + b.var((1, 2)).sum()
    return 4 * covariance * np.sqrt(size[0] * size[1]) / (variance * (size[0] + size[1]))


def test_q_of_one_band_is_the_universal_index_with_its_sign() -> None:
    x, y = TRUE[0, :32, :32], FOUND[0, :32, :32]
    assert q2n(y[None], x[None]) == pytest.approx(_uiqi(x, y), abs=1e-9)
    assert q2n(1 - x[None], x[None]) == pytest.approx(_uiqi(x, 1 - x), abs=1e-9)
    assert q2n(1 - x[None], x[None]) < -0.5
    # Worked: x = 1, 3 and y = 2, 6: covariance 2, means 2 and 4, variances 1 and 4.
    x = np.tile([1.0, 3.0], (2, 1))
    assert q2n(2 * x[None], x[None], block_px=2) == pytest.approx(4 * 2 * 2 * 4 / (5 * 20))


def test_q_of_two_bands_is_that_of_complex_numbers() -> None:
    a, b = _normalised(FOUND[:2, :32, :32], TRUE[:2, :32, :32])
    x, y = (image[0] + 1j * image[1] for image in (a, b))
    covariance = abs(((x - x.mean()) * (y - y.mean()).conj()).mean())
    assert q2n(FOUND[:2, :32, :32], TRUE[:2, :32, :32]) == pytest.approx(_index(covariance, a, b), abs=1e-9)


@pytest.mark.parametrize("num_bands", [3, 4])
def test_q_of_three_and_four_bands_is_that_of_quaternions(num_bands: int) -> None:
    a, b = _normalised(FOUND[:num_bands, :32, :32], TRUE[:num_bands, :32, :32])
    four = [np.concatenate([image - image.mean((1, 2), keepdims=True), np.zeros((4 - num_bands, 32, 32))]) for image in (a, b)]
    (w, x, y, z), (p, q, r, s) = four[0], four[1] * np.array([1, -1, -1, -1])[:, None, None]
    product = [
        w * p - x * q - y * r - z * s,
        w * q + x * p + y * s - z * r,
        w * r - x * s + y * p + z * q,
        w * s + x * r - y * q + z * p,
    ]
    covariance = np.linalg.norm([part.mean() for part in product])
    assert q2n(FOUND[:num_bands, :32, :32], TRUE[:num_bands, :32, :32]) == pytest.approx(_index(covariance, a, b), abs=1e-9)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cayley and Dickson, number by number."""
    if len(a) == 1:
        return a * b
    n = len(a) // 2
    star = np.where(np.arange(n) == 0, 1, -1)
    a, b, c, d = a[:n], a[n:], b[:n], b[n:]
    return np.concatenate([_product(a, c) - _product(star * d, b), _product(d, a) + _product(b, star * c)])


def test_q_of_thirteen_bands_multiplies_sixteen_by_sixteen() -> None:
    true = RNG.uniform(0.2, 0.8, (13, 8, 8))
    found = true + 0.1 * RNG.standard_normal(true.shape)
    a, b = _normalised(found, true)
    apart = [np.pad((image - image.mean((1, 2), keepdims=True)).reshape(13, 64), ((0, 3), (0, 0))).T for image in (a, b)]
    star = np.where(np.arange(16) == 0, 1, -1)
    covariance = np.linalg.norm(np.mean([_product(x, star * y) for x, y in zip(*apart)], axis=0))
    assert q2n(found, true, block_px=8) == pytest.approx(_index(covariance, a, b), abs=1e-9)


@pytest.mark.parametrize("num_bands", [1, 2, 4, 8, 13])
def test_an_image_is_like_itself(num_bands: int) -> None:
    """Also where its side is no multiple of a block, and where it is flat."""
    image = RNG.uniform(0.1, 0.9, (num_bands, 50, 37))
    image[:, :32, :32] = 0.4
    assert q2n(image, image) == pytest.approx(1, abs=1e-9)
    assert q2n(image + 0.2, image) < 1
    found = reduced_resolution(image, image, 4)
    assert {name: found[name] for name in ("sam", "ssim", "ergas", "q2n", "scc")} == pytest.approx(
        {"sam": 0, "ssim": 1, "ergas": 0, "q2n": 1, "scc": 1}, abs=1e-5
    )


def test_qnr_is_one_where_nothing_between_bands_and_pan_has_changed() -> None:
    coarse = RNG.uniform(0.2, 0.8, (3, 32, 32))
    pan = coarse.mean(0)
    assert full_resolution(coarse, coarse, pan, pan) == pytest.approx({"qnr": 1, "d_lambda": 0, "d_s": 0}, abs=1e-12)
    found = full_resolution(coarse[[1, 0, 2]] * 0.5, coarse, pan, pan)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    moved = coarse[[1, 0, 2]] * 0.5
    d_lambda = np.mean([abs(_uiqi(moved[i], moved[j]) - _uiqi(coarse[i], coarse[j])) for i, j in pairs])
    d_s = np.mean([abs(_uiqi(m, pan) - _uiqi(c, pan)) for m, c in zip(moved, coarse)])
    assert found == pytest.approx({"qnr": (1 - d_lambda) * (1 - d_s), "d_lambda": d_lambda, "d_s": d_s}, abs=1e-9)
