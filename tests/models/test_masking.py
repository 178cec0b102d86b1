import torch
import torch.nn.functional as F

from models.decoders import PixelDecoder
from models.masking import block_mask, upsample
from models.stems import MaskToken, SensorStem, is_mostly_invalid


def test_exact_share_of_whole_blocks(generator: torch.Generator) -> None:
    mask = block_mask(50, (16, 16), 4, 0.6, generator)
    assert mask.shape == (50, 16, 16)
    share = F.avg_pool2d(mask.float()[:, None], 4)[:, 0]
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert (share.sum((1, 2)) == 10).all()  # round(0.6 * 16)
    assert 0.4 < share.mean(0).min() < share.mean(0).max() < 0.8  # every place is hidden at times


def test_blocks_are_cut_at_the_far_edge(generator: torch.Generator) -> None:
    mask = block_mask(20, (5, 8), 4, 0.5, generator)
    assert mask.shape == (20, 5, 8)
    assert (mask[:, ::4, ::4].sum((1, 2)) == 2).all()  # one corner of each of the 2 x 2 blocks


def test_mask_follows_the_generator() -> None:
    draws = [block_mask(4, (8, 8), 2, 0.6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
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
    stem = SensorStem(num_bands=2, patch_px=4, width=8)
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
