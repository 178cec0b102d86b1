import pytest
import torch
import torch.nn.functional as F

from models.decoders import PixelDecoder
from models.masking import (
    blocks,
    consistent_groups,
    cross_sensor,
    cubes,
    independent_groups,
    partial_pixels,
    random_tokens,
    upsample,
)
from models.stems.sensor import PatchProjection
from models.stems.stem import MaskToken, is_mostly_invalid


def test_exact_share_of_whole_blocks(generator: torch.Generator) -> None:
    mask = blocks(50, (16, 16), 4, 0.6, generator)
    assert mask.shape == (50, 16, 16)
    share = F.avg_pool2d(mask.float()[:, None], 4)[:, 0]
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert (share.sum((1, 2)) == 10).all()  # round(0.6 * 16)
    assert 0.4 < share.mean(0).min() < share.mean(0).max() < 0.8  # every place is hidden at times


def test_blocks_are_cut_at_the_far_edge(generator: torch.Generator) -> None:
    mask = blocks(20, (5, 8), 4, 0.5, generator)
    assert mask.shape == (20, 5, 8)
    assert (mask[:, ::4, ::4].sum((1, 2)) == 2).all()  # one corner of each of the 2 x 2 blocks


def test_mask_follows_the_generator() -> None:
    draws = [blocks(4, (8, 8), 2, 0.6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_upsample_repeats_cells() -> None:
    mask = upsample(torch.tensor([[[True, False]]]), 2)
    assert mask.tolist() == [[[True, True, False, False], [True, True, False, False]]]


def test_decoder_lights_the_pixel_of_its_cell() -> None:
    decoder = PixelDecoder(width=1, num_bands=2, stride_px=3)
    with torch.no_grad():
        decoder.project.bias.zero_()
        # Output channel: band 1, row 2, column 0 of the cell.
        decoder.project.weight.zero_()[1 * 9 + 2 * 3 + 0] = 1
    cells = torch.zeros(1, 2, 4, 1)
    cells[0, 1, 2] = 5
    pixels = decoder(cells)
    assert pixels.shape == (1, 2, 6, 12)
    assert pixels.nonzero().tolist() == [[0, 1, 1 * 3 + 2, 2 * 3 + 0]]
    assert pixels.max() == 5


def test_stem_sees_its_own_patch_only(generator: torch.Generator) -> None:
    stem = PatchProjection(num_bands=2, patch_px=4, width=8, has_norm=True)
    pixels = torch.randn(1, 2, 8, 12, generator=generator)
    other = pixels.clone()
    other[0, 1, 7, 4] += 1
    tokens, changed = stem(pixels), stem(other)
    assert tokens.shape == (1, 2, 3, 8)
    assert (tokens != changed).any(-1)[0].nonzero().tolist() == [[1, 1]]


def test_hidden_tokens_are_the_learned_one(generator: torch.Generator) -> None:
    module = MaskToken(4)
    module.token.data = torch.tensor([1.0, 2, 3, 4])
    tokens = torch.randn(1, 1, 2, 4, generator=generator)
    output = module(tokens, torch.tensor([[[True, False]]]))
    assert output[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert torch.equal(output[0, 0, 1], tokens[0, 0, 1])


def test_more_than_half_invalid() -> None:
    is_valid = torch.zeros(1, 2, 6, dtype=torch.bool)
    is_valid[0, 0, :4] = True  # patches with 2, 2 and 0 of 4 pixels valid
    is_valid[0, 0, 1] = False  # now 1, 2, 0
    assert is_mostly_invalid(is_valid, 2).tolist() == [[[True, False, True]]]


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 1.0])
def test_random_tokens_hide_an_exact_share_of_the_valid_and_all_others(ratio: float, generator: torch.Generator) -> None:
    is_valid = torch.rand(30, 20, generator=generator) < 0.7
    mask = random_tokens(30, 20, ratio, generator, is_valid)
    assert mask[~is_valid].all()
    expected = (is_valid.sum(1) * ratio).round()
    assert torch.equal((mask & is_valid).sum(1).float(), expected)
    assert (random_tokens(30, 20, ratio, generator).sum(1) == round(20 * ratio)).all()


def test_squares_without_a_valid_token_do_not_count(generator: torch.Generator) -> None:
    is_valid = torch.zeros(10, 8, 8, dtype=torch.bool)
    is_valid[:, :4] = True
    is_valid[:, 0, 0] = False
    mask = blocks(10, (8, 8), 4, 0.5, generator, is_valid)
    assert mask[:, 4:].all()
    assert mask[:, 0, 0].all()
    assert (mask[:, 1, ::4].sum(1) == 1).all()  # one of the two valid squares


def test_groups_independent_and_consistent(generator: torch.Generator) -> None:
    free = independent_groups(40, 3, 16, 0.75, generator)
    assert (free.sum((1, 2)) == 36).all()
    assert not torch.equal(free[:, 0], free[:, 1])
    tied = consistent_groups(40, 3, 16, 0.75, generator)
    assert (tied.sum((1, 2)) == 36).all()
    assert torch.equal(tied[:, 0], tied[:, 1])
    is_valid = torch.ones(40, 3, 16, dtype=torch.bool)
    is_valid[:, 1] = False
    tied = consistent_groups(40, 3, 16, 0.75, generator, is_valid)
    assert tied[:, 1].all()
    assert (tied[:, 0].sum(1) == 12).all()


def test_cubes_hide_whole_cubes(generator: torch.Generator) -> None:
    mask = cubes(20, (4, 6, 6), (2, 3, 3), 0.5, generator)
    parts = mask.view(20, 2, 2, 2, 3, 2, 3).float().mean((2, 4, 6))
    assert set(parts.unique().tolist()) == {0.0, 1.0}
    assert (parts.sum((1, 2, 3)) == 4).all()
    same = [cubes(5, (3, 4, 4), (1, 1, 1), 0.9, torch.Generator().manual_seed(1)),
            independent_groups(5, 3, 16, 0.9, torch.Generator().manual_seed(1)).view(5, 3, 4, 4)]  # fmt: skip
    assert torch.equal(*same)
    is_valid = torch.ones(20, 4, 6, 6, dtype=torch.bool)
    is_valid[:, :2] = False
    mask = cubes(20, (4, 6, 6), (2, 3, 3), 0.5, generator, is_valid)
    assert mask[:, :2].all()
    assert (mask[:, 2:].float().sum((1, 2, 3)) == 2 * 18).all()


def test_partial_pixels_as_ringmo_counts_them(generator: torch.Generator) -> None:
    """192 pixels in blocks of 32: ceil(0.6 * 36) = 22 blocks, ceil(0.6 * 1024) = 615 pixels in each."""
    mask = partial_pixels(3, (192, 192), 32, 0.6, 0.6, generator)
    inside = mask.view(3, 6, 32, 6, 32).sum((2, 4))
    assert set(inside.unique().tolist()) == {0, 615}
    assert ((inside > 0).sum((1, 2)) == 22).all()
    is_valid = torch.ones(3, 192, 192, dtype=torch.bool)
    is_valid[:, 0] = False
    assert partial_pixels(3, (192, 192), 32, 0.6, 0.6, generator, is_valid)[:, 0].all()


def test_cross_sensor_hides_one_present_sensor_and_never_the_last(generator: torch.Generator) -> None:
    is_present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]]).repeat(50, 1)
    mask = cross_sensor(is_present, generator)
    assert mask[~is_present].all()
    hidden = (mask & is_present).sum(1).view(50, 4)
    assert hidden.tolist() == [[1, 1, 0, 0]] * 50
    assert (mask & is_present).view(50, 4, 3)[:, 0].any(0).all()  # each at times
    assert torch.equal(cross_sensor(is_present, generator, 0.0), ~is_present)
