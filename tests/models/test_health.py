import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.batch import Batch, Tiles
from models.encoder import Encoder, EncoderConfig
from models.health import (
    cosine_of_others,
    cosine_turned,
    effective_rank,
    evaluating,
    examine,
    expert_load,
    feature_std,
    high_frequency_power,
    high_frequency_ratio,
)
from models.moe import MoEConfig
from models.objectives.mae import Mae, MaeConfig
from models.sensor import SensorSpec
from models.vit import VitConfig
from tests.models import two_ranks


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


@pytest.mark.parametrize(("frequency", "gain"), [(0.0, 0.0), (0.25, 2 / 3), (0.5, 4 / 3)])
def test_detail_of_a_known_wave(frequency: float, gain: float) -> None:
    wave = torch.cos(2 * math.pi * frequency * torch.arange(34.0)).expand(1, 1, 34, 34) + 5
    inside = wave[..., 1:-1, 1:-1] - 5
    assert float(high_frequency_power(wave)) == pytest.approx(gain**2 * float(inside.pow(2).mean()), abs=1e-6)


def test_detail_of_what_does_not_count_is_not_looked_at(generator: torch.Generator) -> None:
    image = torch.randn(2, 3, 16, 16, generator=generator)
    is_counted = torch.zeros(2, 16, 16, dtype=torch.bool)
    is_counted[:, 4:12, 4:12] = True
    spoilt = torch.where(is_counted[:, None], image, torch.nan)
    assert high_frequency_ratio(spoilt, image, is_counted) == pytest.approx(1)
    assert float(high_frequency_power(spoilt, is_counted)) == pytest.approx(float(high_frequency_power(image[..., 4:12, 4:12])))
    assert high_frequency_ratio(image, image, torch.zeros_like(is_counted)) == 0


def test_cosine_of_others_is_the_mean_over_pairs(generator: torch.Generator) -> None:
    features = torch.randn(7, 5, generator=generator) + 1
    pairs = [F.cosine_similarity(features[i], features[j], dim=0) for i in range(7) for j in range(7) if i != j]
    assert cosine_of_others(features) == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-6)


def test_turning_changes_nothing_for_a_mean_and_flips_a_slope(
    make_batch: Callable[..., Batch], specs: dict[str, SensorSpec]
) -> None:
    tiles = make_batch(specs["optical"], times=2).tiles["optical"]
    slope = torch.linspace(-1, 1, tiles.pixels.shape[-1])

    def mean(some: Tiles) -> torch.Tensor:
        return some.pixels.flatten(0, 1).mean((-2, -1))

    def slopes(some: Tiles) -> torch.Tensor:
        return torch.stack(
            [(some.pixels * slope).flatten(2).mean(2), (some.pixels * slope[:, None]).flatten(2).mean(2)], -1
        ).flatten(0, 1)

    for quarters, expected in ((1, 0.0), (2, -1.0), (4, 1.0)):
        assert float(cosine_turned(mean, tiles, quarters)) == pytest.approx(1)
        # A gradient turned by a quarter stands upright on itself, by a half it points the other way.
        assert float(cosine_turned(slopes, tiles, quarters)) == pytest.approx(expected, abs=1e-5)


def test_evaluating_gives_each_part_its_own_mode_back() -> None:
    module = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1).eval()])
    with evaluating(module):
        assert not module.training
        assert not module[0].training
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


def test_examination_of_an_objective(
    make_batch: Callable[..., Batch], specs: dict[str, SensorSpec], generator: torch.Generator
) -> None:
    sensors = specs["optical"], specs["radar"]
    moe = MoEConfig(3, 2)
    encoder = EncoderConfig(VitConfig(8, 2, 2, moe=moe), 20.0, sensors, hidden="absent")
    mae = Mae(encoder, MaeConfig(VitConfig(8, 1, 2, has_class_token=False)), generator)
    batch = make_batch(*sensors, num=6)
    batch.tiles["radar"].is_present[3] = False
    before = {name: value.clone() for name, value in mae.state_dict().items()}
    found = examine(mae, batch, generator)
    for sensor, num in (("optical", 6), ("radar", 5)):
        assert found[f"num_tiles/{sensor}"] == num
        assert 1 <= found[f"effective_rank/{sensor}"] <= num - 1
        assert 0 < found[f"feature_std/{sensor}"] <= 1
        for measure in ("cosine_turned_90", "cosine_turned_180", "cosine_others"):
            assert -1 <= found[f"{measure}/{sensor}"] <= 1 + 1e-6
        (load,) = found[f"expert_load/{sensor}"]
        assert sum(load) == pytest.approx(1)
    assert found["high_frequency/optical"] > 0
    batch.tiles["radar"].is_present[:] = False
    assert [(k, v) for k, v in examine(mae, batch, generator).items() if k.endswith("/radar")] == [("num_tiles/radar", 0)]
    assert mae.training
    assert all(torch.equal(value, before[name]) for name, value in mae.state_dict().items())


@pytest.mark.parametrize("name", list(two_ranks.objectives()))
def test_every_objective_names_its_sensors_and_says_what_it_compares(name: str) -> None:
    objective, batch = two_ranks.objectives()[name], two_ranks.make_batch(0)
    found = examine(objective, batch, two_ranks.seeded(0))
    for sensor in batch.tiles:
        assert found[f"projection_std/{sensor}"] > 0
        assert found[f"effective_rank/{sensor}"] > 1
    terms = [term for term in objective(batch, two_ranks.seeded(0)) if "/" in term]
    assert terms
    for term in terms:
        assert set(term.partition("/")[2].split("+")) <= set(batch.tiles), term
