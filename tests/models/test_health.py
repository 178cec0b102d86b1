from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from models.encoder import Encoder, EncoderConfig
from models.health import effective_rank, expert_load, feature_std, high_frequency_ratio


def test_effective_rank_finds_a_known_rank(generator: torch.Generator) -> None:
    basis = torch.linalg.qr(torch.randn(200, 5, generator=generator) - 0.0)[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]  # five orthonormal columns of mean zero
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:5]
    assert effective_rank(basis @ directions + 3) == pytest.approx(5, rel=1e-3)
    # Singular values 3 and 1: exp of the entropy of (.75, .25)
    assert effective_rank(basis[:, :2] * torch.tensor([3.0, 1.0])) == pytest.approx(1.7548, rel=1e-3)
    assert effective_rank(torch.ones(10, 4)) == 0


def test_feature_std() -> None:
    assert feature_std(torch.ones(8, 4) * torch.rand(8, 1)) == pytest.approx(0, abs=1e-6)
    spread = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(spread) == pytest.approx(1, rel=0.01)
    # Four corners of a square of the plane: each coordinate is +-sqrt(1/2), times sqrt(2).
    assert feature_std(torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])) == pytest.approx(1)


def test_high_frequency_ratio(generator: torch.Generator) -> None:
    image = torch.randn(2, 3, 32, 32, generator=generator)
    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="circular"), 5, stride=1)
    assert high_frequency_ratio(image, image) == pytest.approx(1)
    assert high_frequency_ratio(image / 2, image) == pytest.approx(0.25)
    assert high_frequency_ratio(blurred, image) < 0.1
    assert high_frequency_ratio(image.mean((-2, -1), keepdim=True).expand_as(image), image) < 1e-6


def test_expert_load_names_each_mixture(make_config: Callable[..., EncoderConfig], generator: torch.Generator) -> None:
    encoder = Encoder(make_config(num_experts=4), generator)
    assert expert_load(encoder) == {}
    encoder.features(torch.randn(2, 1, 16, 16, generator=generator), torch.ones(2, 16, 16).bool(), "radar")
    ((name, load),) = expert_load(encoder).items()
    assert name.startswith("backbone.blocks.3")
    assert load.shape == (1, 4)
    assert load.sum().item() == pytest.approx(1)
