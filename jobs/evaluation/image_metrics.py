"""How well an image is restored: its difference from the true one, in values, structure, spectra and detail.

Decides the definitions. All take arrays (band, y, x), float64, in which the sensor's range is 0 to 1 (`scaled`), and give one
number an image; over a split it is the images' numbers that are averaged (SEN12MS-CR's convention). `is_valid` (y, x) is
where the truth is known. SSIM and ERGAS are torchmetrics'; what it lacks, or defines otherwise than the field, is here.
"""

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.functional.image import error_relative_global_dimensionless_synthesis, structural_similarity_index_measure

from jobs.evaluation.hypercomplex import q2n

SSIM_SIGMA, SSIM_REACH_PX = 1.5, 5
LAPLACIAN = np.array([[-1.0, -1.0, -1.0], [-1.0, 8.0, -1.0], [-1.0, -1.0, -1.0]])


def scaled(pixels: np.ndarray, clip: tuple[float, float]) -> np.ndarray:
    """Return physical values clipped to `clip` and brought to 0..1."""
    low, high = clip
    return (np.clip(np.asarray(pixels, np.float64), low, high) - low) / (high - low)


def differences(found: np.ndarray, true: np.ndarray, is_valid: np.ndarray) -> dict[str, float]:
    """Return what cloud removal is judged by: MAE, RMSE, PSNR, SSIM and SAM over the valid pixels."""
    apart = (found - true)[:, is_valid]
    rmse = float(np.sqrt(np.mean(apart**2)))
    return {
        "mae": float(np.abs(apart).mean()),
        "rmse": rmse,
        "psnr": psnr(rmse),
        "ssim": ssim(found, true, is_valid),
        "sam": sam(found, true, is_valid),
    }


def reduced_resolution(found: np.ndarray, true: np.ndarray, ratio: int) -> dict[str, float]:
    """Return what pan-sharpening is judged by where the truth is known: Wald's protocol, `ratio` = pan pixels a pixel's side."""
    everywhere = np.ones(true.shape[1:], bool)
    return {
        **{name: value for name, value in differences(found, true, everywhere).items() if name in ("sam", "psnr", "ssim")},
        "ergas": ergas(found, true, ratio),
        "q2n": q2n(found, true),
        "scc": scc(found, true),
    }


def psnr(rmse: float) -> float:
    """Return 20 log10(1 / RMSE) in dB, of images whose range is 1; infinite for equal images."""
    return float("inf") if rmse == 0 else float(-20 * np.log10(rmse))


def sam(found: np.ndarray, true: np.ndarray, is_valid: np.ndarray) -> float:
    """Return the mean angle between spectra in degrees (Kruse et al. 1993), over valid pixels that are dark in neither image.

    A vector of zeros has no direction. NaN where no pixel has one.
    """
    a, b = found[:, is_valid], true[:, is_valid]
    length = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    has_angle = length > 0
    if not has_angle.any():
        return float("nan")
    cosine = (a * b).sum(0)[has_angle] / length[has_angle]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


def ssim(found: np.ndarray, true: np.ndarray, is_valid: np.ndarray) -> float:
    """Return the structural similarity of Wang et al. 2004: Gaussian windows of 11 px that lie inside and are all valid.

    NaN where there is no such window.
    """
    a, b = (torch.from_numpy(np.where(is_valid, image, 0.0))[None] for image in (found, true))
    _, full = structural_similarity_index_measure(a, b, sigma=SSIM_SIGMA, data_range=1.0, return_full_image=True)
    inner = (slice(SSIM_REACH_PX, -SSIM_REACH_PX),) * 2
    side = 2 * SSIM_REACH_PX + 1
    is_whole = ndimage.binary_erosion(is_valid, np.ones((side, side)), border_value=1)[inner]
    return float(full[0].numpy()[:, *inner][:, is_whole].mean()) if is_whole.any() else float("nan")


def ergas(found: np.ndarray, true: np.ndarray, ratio: int) -> float:
    """Return 100 / ratio * sqrt(mean over bands of (RMSE / mean of the truth)^2) (Wald 2000)."""
    a, b = (torch.from_numpy(np.ascontiguousarray(image))[None] for image in (found, true))
    return float(error_relative_global_dimensionless_synthesis(a, b, ratio=ratio))


def scc(found: np.ndarray, true: np.ndarray) -> float:
    """Return the correlation of detail (Zhou et al. 1998): of each band after a 3 x 3 Laplacian, inside the image; their mean.

    torchmetrics has another: correlations in windows of 8 px, averaged. A band without any detail in either image counts 1,
    in one of the two 0.
    """
    detail = (np.stack([ndimage.convolve(band, LAPLACIAN)[1:-1, 1:-1] for band in image]) for image in (found, true))
    return float(np.mean([_correlation(a, b) for a, b in zip(*detail)]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    strength = np.array([np.sqrt((a**2).sum()), np.sqrt((b**2).sum())])
    if (strength < 1e-12).any():
        return float((strength < 1e-12).all())
    return float((a * b).sum() / strength.prod())


def full_resolution(found: np.ndarray, coarse: np.ndarray, pan: np.ndarray, coarse_pan: np.ndarray) -> dict[str, float]:
    """Return QNR and its parts (Alparone et al. 2008, all exponents 1): without a truth, of the sharpened image itself.

    `found` (band, y, x) and `pan` (y, x) have the fine pixels, `coarse` (band, Y, X) and `coarse_pan` (Y, X), the panchromatic
    image brought to the coarse pixels, the others. d_lambda: how much the Q of each pair of bands changes. d_s: how much the
    Q of each band with the panchromatic image does. (The DLPan toolbox compares with an enlarged `coarse` in d_s.)
    """
    bands = range(len(found))
    changes = [abs(q2n(found[[i]], found[[j]]) - q2n(coarse[[i]], coarse[[j]])) for i in bands for j in bands if i != j]
    apart = [abs(q2n(found[[i]], pan[None]) - q2n(coarse[[i]], coarse_pan[None])) for i in bands]
    d_lambda, d_s = float(np.mean(changes)) if changes else 0.0, float(np.mean(apart))
    return {"qnr": (1 - d_lambda) * (1 - d_s), "d_lambda": d_lambda, "d_s": d_s}
