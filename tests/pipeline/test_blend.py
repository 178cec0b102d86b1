"""Windows cover an image once in sum, whichever blocks it is done in."""

from itertools import product

import numpy as np
import pytest

from pipeline.blend import Blend, BlendedBlock, Span
from pipeline.errors import InputError


def blended(blend: Blend, size: int, values: np.ndarray, is_valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put an image together from its own windows, block by block."""
    result, known = np.zeros_like(values), np.zeros(blend.shape, bool)
    for block in blend.blocks(size):
        found = BlendedBlock(blend, block, values.shape[-1])
        for window in blend.windows(block):
            place = tuple(slice(a, b) for a, b in zip(window.start, window.stop))
            found.add(window, values[place], is_valid[place])
        place = tuple(slice(a, b) for a, b in zip(block.start, block.stop))
        result[place], known[place] = found.result()
    return result, known


@pytest.mark.parametrize(("overlap", "margin"), [(0, 0), (1, 0), (4, 0), (4, 1), (4, 2), (7, 3)])
def test_an_image_comes_back_as_it_was(overlap: int, margin: int) -> None:
    values = np.random.default_rng(0).normal(size=(23, 37, 3)).astype(np.float32)
    is_valid = np.random.default_rng(1).random((23, 37)) < 0.8
    blend = Blend((23, 37), 8, overlap, margin)
    for size in (5, 16, 40):
        result, known = blended(blend, size, values, is_valid)
        assert np.array_equal(known, is_valid)
        np.testing.assert_allclose(result[known], values[known], rtol=1e-5)


def test_weights_of_neighbours_add_up_to_one() -> None:
    blend = Blend((26, 26), 8, 4, 1)  # steps of 4, and a last window that fits
    starts = blend.starts(0)
    assert starts == [0, 4, 8, 12, 16, 18]
    total = np.zeros(26)
    for start in starts[:-1]:
        total[start : start + 8] += blend.weight(0, start)
    np.testing.assert_allclose(total[:21], 1, rtol=1e-6)
    assert blend.weight(0, 4)[0] == blend.weight(0, 4)[-1] == 0
    assert blend.weight(0, 0)[0] == 1
    assert blend.weight(0, 18)[-1] == 1


def test_blocks_know_all_windows_that_reach_into_them() -> None:
    blend = Blend((30, 20), 6, 3)
    windows = [Span((y, x), (y + 6, x + 6)) for y, x in product(blend.starts(0), blend.starts(1))]
    for block in blend.blocks(7):
        reaching = [w for w in windows if all(w.start[a] < block.stop[a] and w.stop[a] > block.start[a] for a in (0, 1))]
        assert blend.windows(block) == reaching
        around = blend.around(block)
        assert max(around.shape) <= blend.widest(7)


@pytest.mark.parametrize(("shape", "window", "overlap", "margin"), [((8, 8), 4, 4, 0), ((8, 8), 4, 2, 2), ((3, 8), 4, 2, 0)])
def test_windows_that_do_not_fit_are_refused(shape: tuple[int, int], window: int, overlap: int, margin: int) -> None:
    with pytest.raises(InputError, match=r"expected an overlap|use smaller windows"):
        Blend(shape, window, overlap, margin)
