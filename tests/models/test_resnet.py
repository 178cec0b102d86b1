"""ResNet: published sizes, shapes, what batch norm's statistics are in training, in use and in other precisions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.norms import GlobalBatchNorm
from models.resnet import Block, ResnetConfig
from models.sensor import SensorSpec
from models.stems.resnet import ResnetProjection, ResnetStemConfig
from tests.models.conftest import OPTICAL, RADAR

RGB = SensorSpec("rgb", "passive", "digital_number", "1", 1.0, ("r", "g", "b"), (None,) * 3, (0.4,) * 3, (0.2,) * 3)


def small(*sensors: SensorSpec, depth: int = 18, pool: str = "last") -> EncoderConfig:
    backbone = ResnetConfig(depth, embed_dim=4)  # type: ignore[arg-type]
    return EncoderConfig(backbone, 40.0, sensors or (OPTICAL, RADAR), pool, stem=ResnetStemConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "expected"), [(18, 11_176_512), (50, 23_508_032)])
def test_sizes_are_the_published_ones(depth: int, expected: int) -> None:
    """Those of the published classifiers, 11,689,512 and 25,557,032, less the last layer's."""
    with torch.device("meta"):
        config = EncoderConfig(ResnetConfig(depth), 4.0, (RGB,), stem=ResnetStemConfig())  # type: ignore[arg-type]
        encoder = Encoder(config)
    assert encoder.num_parameters - config.backbone.embed_dim == expected  # the mask token is ours


def test_four_stages_on_half_the_grid_each(make_batch, generator: torch.Generator) -> None:
    encoder = Encoder(small(depth=50, pool="stages"), generator)
    batch = make_batch(OPTICAL, size_m=640.0)
    normalised, _ = encoder.normalise(batch.tiles["optical"], OPTICAL)
    features = encoder.features(normalised, torch.ones(4, 64, 64, dtype=torch.bool), "optical")
    assert [tuple(m.shape[1:]) for m in features.maps] == [(16, 16, 16), (8, 8, 32), (4, 4, 64), (2, 2, 128)]
    assert encoder.encode(batch)["optical"].pooled.shape == (4, 1, 16 + 32 + 64 + 128)
    assert encoder.cells(torch.ones(1, 64, 64, dtype=torch.bool), "optical").shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("patch", "stride", "kernel"), [(1, 1, 7), (3, 3, 7), (4, 2, 7), (5, 5, 7), (16, 8, 9), (18, 9, 9), (28, 14, 15)]
)
def test_a_stem_leaves_no_pixel_out_whatever_a_token_is(patch: int, stride: int, kernel: int) -> None:
    stem = ResnetProjection(1, patch, 4)
    assert (stem.convolution.stride[0], stem.convolution.kernel_size[0]) == (stride, kernel)
    nn.init.ones_(stem.convolution.weight), nn.init.ones_(stem.norm.weight), nn.init.zeros_(stem.norm.bias)
    pixels = torch.randn(2, 1, 3 * patch, 2 * patch, requires_grad=True)
    assert stem(pixels).shape == (2, 3, 2, 4)
    stem.convolution(pixels).sum().backward()
    assert (pixels.grad != 0).all()


def test_the_stride_of_a_bottleneck_is_in_its_middle() -> None:
    block = Block(8, 4, 4, 2)
    assert [c.stride[0] for c in block.convolutions] == [1, 2, 1]
    assert [c.kernel_size[0] for c in block.convolutions] == [1, 3, 1]


def test_a_sample_alone_is_encoded_as_among_others(make_batch, tmp_path: Path, generator: torch.Generator) -> None:
    """In use the running statistics speak, not the batch's, and they are saved with the weights."""
    encoder = Encoder(small(), generator)
    batch = make_batch(OPTICAL, num=3)
    fresh = encoder.encode(batch)["optical"].pooled
    for _ in range(3):
        encoder.pooled(batch.tiles["optical"], "optical")
    whole = encoder.encode(batch)["optical"].pooled
    assert not torch.allclose(whole, fresh, rtol=0.1)
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    torch.testing.assert_close(loaded.encode(batch)["optical"].pooled, whole)
    tiles = batch.tiles["optical"]
    names = ("pixels", "is_valid", "is_present", "time_days")
    alone = replace(tiles, **{name: getattr(tiles, name)[1:2] for name in names})
    found = loaded.encode(replace(batch, tiles={"optical": alone}, lonlat=batch.lonlat[1:2]))["optical"].pooled
    torch.testing.assert_close(found[0], whole[1], rtol=1e-4, atol=1e-5)


def test_hidden_ground_is_one_token(make_batch, generator: torch.Generator) -> None:
    encoder = Encoder(small(), generator).eval()
    tiles = make_batch(OPTICAL, num=3).tiles["optical"]
    normalised, _ = encoder.normalise(tiles, OPTICAL)
    features = encoder.features(normalised, tiles.is_observed.flatten(0, 1), "optical", torch.ones(3, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(features.maps[-1][0], features.maps[-1][1])


def test_running_statistics_stay_in_float32() -> None:
    norm = GlobalBatchNorm(3).bfloat16()
    nn.init.ones_(norm.weight), nn.init.zeros_(norm.bias)
    assert (norm.weight.dtype, norm.running_mean_D.dtype) == (torch.bfloat16, torch.float32)
    kept = norm.running_mean_D
    for seed in range(3):
        images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) + 2
        assert norm(images.bfloat16()).dtype == torch.bfloat16
    assert norm.running_mean_D is kept
    torch.testing.assert_close(kept, torch.full((3,), 2 * (1 - 0.9**3)), rtol=0.1, atol=0)
    assert norm.double().running_mean_D.dtype == torch.float32


def test_other_depths_and_dates_together_are_refused() -> None:
    with pytest.raises(InputError, match=r"resnet has depth 34 .* expected depth 18 or 50"):
        ResnetConfig(34)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="several tokens of one place need a vit"):
        replace(small(), frames="together")
    with pytest.raises(InputError, match="serves the bands it was trained on"):
        Encoder(small()).extended(replace(OPTICAL, bands=("nir", "red")))
