"""The dense head and what is trained with an encoder."""

import pytest
import torch

from models.batch import Batch, Tiles
from models.dense_head import DenseHead, PixelHead, compared
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.tuned import PooledHead, Tuned
from models.vit import VitConfig

SPEC = SensorSpec("radar", "active", "sigma0", "dB", 10.0, ("VV",), (None,), (-12.0,), (4.0,))
BACKBONES = {
    "swin": SwinConfig(embed_dim=8, depths=(1, 2), num_heads=(1, 2), window=4),
    "vit": VitConfig(embed_dim=8, depth=3, num_heads=2),
    "resnet": ResnetConfig(depth=18, embed_dim=8),
}


def batch(count: int = 3, dates: int = 2, side: int = 32) -> Batch:
    pixels = torch.randn(count, dates, 1, side, side, generator=torch.Generator().manual_seed(0)) * 4 - 12
    days = torch.full((count, dates), torch.nan, dtype=torch.float64)
    tiles = Tiles(pixels, torch.ones(count, dates, side, side, dtype=torch.bool), days.isnan(), days, ("VV",), "dB", 10.0)
    return Batch({"radar": tiles}, torch.full((count, 2), torch.nan, dtype=torch.float64))


def tuned(kind: str, dates: int = 2) -> Tuned:
    encoder = Encoder(EncoderConfig(BACKBONES[kind], 40.0, (SPEC,)), torch.Generator().manual_seed(1))
    widths = [BACKBONES[kind].width(stage) for stage in range(BACKBONES[kind].num_stages)]
    return Tuned(encoder, DenseHead({"radar": widths}, {"radar": dates}, 2, 4, 16, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("dates", [1, 2])
def test_every_pixel_gets_an_answer_from_any_backbone(kind: str, dates: int) -> None:
    outputs, balance = tuned(kind, dates)(batch(dates=dates))
    assert outputs.shape == (3, 2, 32, 32)
    assert outputs.dtype == torch.float32
    assert balance.shape == ()


def test_equal_dates_have_no_difference() -> None:
    map_BTyxD = torch.randn(2, 1, 4, 4, 6, generator=torch.Generator().manual_seed(3)).expand(-1, 3, -1, -1, -1)
    last, change = compared(map_BTyxD).split(6, -1)
    assert torch.equal(change, torch.zeros_like(change))
    assert torch.equal(last, map_BTyxD[:, 0])


def test_channels_of_little_variance_are_seen_after_standardising() -> None:
    """A channel with a fiftieth of the others' spread, about another level, spreads as they do; its two sides stay apart."""
    maps = {"radar": [torch.randn(64, 1, 4, 4, 6, generator=torch.Generator().manual_seed(6))]}
    maps["radar"][0][..., 5] = maps["radar"][0][..., 5] * 0.02 + 1
    head = DenseHead({"radar": [6]}, {"radar": 1}, 2, 1, 8, torch.Generator().manual_seed(7))
    assert head.scales["radar"][0](maps["radar"][0])[..., 5].mean() > 0.3
    head.standardise(maps)
    seen_ND = head.scales["radar"][0](maps["radar"][0]).flatten(0, -2)
    assert torch.allclose(seen_ND.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(seen_ND.std(0), torch.ones(6), atol=1e-3)


def test_head_learns_what_differs_between_two_dates() -> None:
    """Squares that brighten at the second date are found again; with the dates swapped they are not."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.zeros(8, 8, 8, dtype=torch.long)
    for sample, corner in enumerate(torch.randint(6, (8, 2), generator=generator).tolist()):
        truth[sample, corner[0] : corner[0] + 3, corner[1] : corner[1] + 3] = 1
    first = torch.randn(8, 8, 8, 4, generator=generator)
    second = first + truth[..., None] * torch.tensor([3.0, 0.0, 0.0, -3.0])
    maps = {"radar": [torch.stack([first, second], 1)]}
    head = DenseHead({"radar": [4]}, {"radar": 2}, 2, 1, 16, torch.Generator().manual_seed(5))
    optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(maps), truth).backward()
        optimiser.step()
    assert (head(maps).argmax(1) == truth).float().mean() > 0.97
    swapped = head({"radar": [maps["radar"][0].flip(1)]}).argmax(1)
    assert (swapped[truth == 1] == 1).float().mean() < 0.5


def test_with_pixels_edges_are_finer_than_a_cell() -> None:
    """What differs between two pixels of one cell, of which the maps say nothing, is found in the pixels."""
    generator = torch.Generator().manual_seed(8)
    truth = torch.randint(2, (8, 16, 16), generator=generator)
    pixels = {"radar": torch.stack([torch.zeros(8, 1, 16, 16), truth[:, None] * 2.0 - 1], 1)}
    maps = {"radar": [torch.randn(8, 2, 4, 4, 6, generator=generator)]}
    inner = DenseHead({"radar": [6]}, {"radar": 2}, PixelHead.DETAIL, 2, 8, generator)
    head = PixelHead(inner, {"radar": (2, 1)}, 16, 2, generator)
    optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(maps, pixels), truth).backward()
        optimiser.step()
    assert (head(maps, pixels).argmax(1) == truth).float().mean() > 0.97


def test_heads_answer_without_one_of_their_sensors() -> None:
    """What is not given adds nothing: as if it were there at 0."""
    generator, both = torch.Generator().manual_seed(9), ("fine", "coarse")
    maps = {name: [torch.randn(3, 2, 4, 4, 6, generator=generator)] for name in both}
    pixels = {"fine": torch.randn(3, 2, 1, 16, 16, generator=generator), "coarse": torch.randn(3, 2, 3, 8, 8, generator=generator)}
    inner = DenseHead({name: [6] for name in both}, dict.fromkeys(both, 2), PixelHead.DETAIL, 2, 8, generator)
    head = PixelHead(inner, {name: pixels[name].shape[1:3] for name in both}, 16, 2, generator)
    for name in both:
        seen = {name: maps[name]}, {name: pixels[name]}
        assert head(*seen).shape == (3, 2, 16, 16)
        other = {n: pixels[n] * (n == name) for n in both}
        assert torch.allclose(head(seen[0], other), head(*seen), atol=1e-5)
        assert not torch.allclose(head(maps, pixels), head(*seen), atol=1e-2)
    pooled = {name: torch.randn(3, 2, 4, generator=generator) for name in both}
    linear = PooledHead(4, dict.fromkeys(both, 2), 1)
    torch.nn.init.normal_(linear.linear.weight, generator=generator)
    nothing = {"fine": pooled["fine"], "coarse": torch.zeros(3, 2, 4)}
    assert torch.allclose(linear({"fine": pooled["fine"]}), linear(nothing))


@pytest.mark.parametrize("side", [2, 4, 10])
def test_sides_that_cannot_be_halved_are_answered(side: int) -> None:
    inner = DenseHead({"radar": [6]}, {"radar": 1}, PixelHead.DETAIL, 2, 8)
    head = PixelHead(inner, {"radar": (1, 1)}, side, 2)
    assert head({"radar": [torch.randn(1, 1, 3, 3, 6)]}, {"radar": torch.randn(1, 1, 1, side, side)}).shape == (1, 2, side, side)


def test_odd_maps_have_no_blocks() -> None:
    inner = DenseHead({"radar": [6]}, {"radar": 1}, PixelHead.DETAIL, 1, 8)
    with pytest.raises(InputError, match="15 pixels a side, expected blocks of 2; use the protocol decoder"):
        PixelHead(inner, {"radar": (1, 1)}, 15, 2)


@pytest.mark.parametrize("kind", BACKBONES)
def test_layers_nearer_the_input_learn_slower_and_each_once(kind: str) -> None:
    model = tuned(kind)
    groups = model.parameter_groups(1.0, 0.5)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    depth = len(model.encoder.backbone.blocks)
    assert [group["lr"] for group in groups] == [0.5 ** (depth + 1 - layer) for layer in range(depth + 2)]
    assert {id(parameter) for parameter in model.head.parameters()} == {id(p) for p in groups[-1]["params"]}


def test_pixels_go_through_the_encoders_checks() -> None:
    model, wrong = tuned("swin"), batch()
    tiles = wrong.tiles["radar"]
    power = Batch({"radar": Tiles(**{**vars(tiles), "unit": "1"})}, wrong.lonlat)
    with pytest.raises(Exception, match="unit"):
        model(power)
    scaled = Batch({"radar": Tiles(**{**vars(tiles), "pixels": tiles.pixels * 1000})}, wrong.lonlat)
    with pytest.raises(Exception, match="std from the training mean"):
        model(scaled)


def test_pooled_head_is_linear_in_first_last_and_difference() -> None:
    head = PooledHead(2, {"radar": 2}, 1)
    head.linear.weight.data = torch.tensor([[1.0, 10.0, 100.0, 1000.0, 1e4, 1e5]])
    pooled = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])
    assert head({"radar": pooled}).item() == pytest.approx(1 + 20 + 300 + 1000 + 2e4 + 1e5)
