"""Q2n, the quality index of images of many bands, each pixel one hypercomplex number (Garzelli and Nencini 2009).

Decides the index and its blocks. Of one band it is the universal image quality index of Wang and Bovik 2002 (without the
normalisation by the truth's blocks). Numbers are multiplied by Cayley and Dickson's rule, (a, b)(c, d) = (ac - d*b, da + bc*).
"""

from functools import cache

import numpy as np

BLOCK_PX = 32


def q2n(found: np.ndarray, true: np.ndarray, block_px: int = BLOCK_PX) -> float:
    """Return the mean over blocks of `block_px` of the index, 1 for an image with itself; images (band, y, x).

    An image that is no multiple of a block is continued by its reflection. With two bands or more, each block is first brought
    to mean 1 and standard deviation 1 of the *truth's* band there, for both images alike, as the DLPan toolbox does:
    bands of unlike brightness then weigh the same.
    """
    a, b = _blocks(found, block_px), _blocks(true, block_px)
    if len(true) > 1:
        level = b.mean(-1, keepdims=True)
        spread = b.std(-1, ddof=1, keepdims=True)
        spread = np.where(spread > 1e-12 * np.abs(level), spread, np.finfo(float).eps)
        flat = spread == np.finfo(float).eps
        # In a band that is flat the truth is 1 all over, and differences stay what they are.
        a = np.where(flat, a - level, (a - level) / np.where(flat, 1.0, spread)) + 1
        b = np.where(flat, 0.0, (b - level) / np.where(flat, 1.0, spread)) + 1
    return float(np.mean(_index(a, b)))


def _blocks(image: np.ndarray, size: int) -> np.ndarray:
    """Return (block, band, pixel) float64."""
    bands, height, width = image.shape
    image = np.pad(np.asarray(image, np.float64), ((0, 0), (0, -height % size), (0, -width % size)), mode="symmetric")
    rows, columns = image.shape[1] // size, image.shape[2] // size
    return image.reshape(bands, rows, size, columns, size).transpose(1, 3, 0, 2, 4).reshape(rows * columns, bands, size**2)


def _index(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (block,): |cov| / (sd sd) x 2 sd sd / (var + var) x 2 |mean| |mean| / (|mean|^2 + |mean|^2)."""
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    apart_a, apart_b = a - mean_a[..., None], b - mean_b[..., None]
    # E[x_i y_j], from which the mean of the products x y* follows, as multiplying is bilinear.
    covariance = _times_conjugate(apart_a @ apart_b.swapaxes(-1, -2) / a.shape[-1])
    variance = (apart_a**2).mean(-1).sum(-1) + (apart_b**2).mean(-1).sum(-1)
    square = (mean_a**2).sum(-1) + (mean_b**2).sum(-1)
    bright = np.sqrt((mean_a**2).sum(-1) * (mean_b**2).sum(-1))
    light = np.where(square > 0, 2 * bright / np.where(square > 0, square, 1), 1.0)
    # Two flat blocks have nothing but their brightness to be compared by.
    return light * np.where(variance > 0, 2 * covariance / np.where(variance > 0, variance, 1), 1.0)


def _times_conjugate(moments: np.ndarray) -> np.ndarray:
    """Return (block,): the length of the sum over i, j of moments[i, j] e_i e_j*; of one band the number with its sign."""
    bands = moments.shape[-1]
    if bands == 1:
        return moments[:, 0, 0]
    signs = _signs(1 << (bands - 1).bit_length())[:bands, :bands] * np.where(np.arange(bands) == 0, 1, -1)
    product = np.zeros((len(moments), 1 << (bands - 1).bit_length()))
    for i in range(bands):
        for j in range(bands):
            product[:, i ^ j] += signs[i, j] * moments[:, i, j]
    return np.linalg.norm(product, axis=-1)


@cache
def _signs(size: int) -> np.ndarray:
    """Return s (size, size) with e_i e_j = s[i, j] e_(i xor j)."""
    if size == 1:
        return np.ones((1, 1), int)
    half, n = _signs(size // 2), size // 2
    conjugate = np.where(np.arange(n) == 0, 1, -1)
    signs = np.empty((size, size), int)
    signs[:n, :n] = half  # ac
    signs[:n, n:] = half.T  # da: a times d lands as d times a
    signs[n:, :n] = half * conjugate  # bc*
    signs[n:, n:] = -(half * conjugate[:, None]).T  # -d*b
    return signs
