"""What somebody adds is one new file: a sensor, a stem, an objective with its recipe."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from jobs import recipes
from models import stems
from models.batch import Batch, Tiles
from models.encoder import Encoder, EncoderConfig
from models.sensor import SensorSpec
from models.vit import VitConfig
from pipeline.sensors import load_sensor

STEM = '''
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from models.stems.stem import Stem, StemConfig


@dataclass(frozen=True)
class MeanStemConfig(StemConfig):
    kind: str = "mean"

    def build(self, sensors, token_size_m, width):
        return MeanStem(sensors, token_size_m, width)


class MeanStem(Stem):
    """A token is a linear map of its bands' means."""

    def __init__(self, sensors, token_size_m, width):
        super().__init__()
        self.token_size_m = token_size_m
        self.maps = nn.ModuleDict({spec.name: nn.Linear(spec.num_bands, width) for spec in sensors})

    def forward(self, pixels_BCYX, spec):
        means = F.avg_pool2d(pixels_BCYX, spec.patch_px(self.token_size_m)).permute(0, 2, 3, 1)
        return self.maps[spec.name](means)[:, None]
'''

RECIPE = '''
from dataclasses import dataclass, field

from torch import nn

from cluster.job import TrainConfig
from models.encoder import Encoder, EncoderConfig
from models.vit import VitConfig

KIND = "pretrain"


class Spread(nn.Module):
    """Push embeddings apart."""

    def __init__(self, encoder, generator):
        super().__init__()
        self.encoder = Encoder(encoder, generator)

    def forward(self, batch, generator):
        name = next(iter(batch.tiles))
        pooled, _ = self.encoder.pooled(batch.tiles[name], name, generator)
        return {"loss": -pooled.std(0).mean()}


@dataclass(frozen=True)
class SpreadRecipe:
    train: TrainConfig = field(default_factory=TrainConfig)

    def build(self, sensors, generator):
        return Spread(EncoderConfig(VitConfig(8, 1, 2), 20.0, sensors, hidden="absent"), generator)


def spread_tiny():
    """Embeddings apart."""
    return SpreadRecipe()
'''

SENSOR = """
name: planetscope
sensing: passive
quantity: surface_reflectance
unit: "1"
gsd_m: 3
dtype: uint16
scale: 0.0001
valid_range: [0.0, 2.0]
bands:
  - {name: red, wavelength_nm: 665, bandwidth_nm: 31, gsd_m: 3}
  - {name: nir, wavelength_nm: 865, bandwidth_nm: 40, gsd_m: 3}
"""
SPEC = SensorSpec("it", "passive", "surface_reflectance", "1", 10.0, ("red", "nir"), (665.0, 842.0), (0.1, 0.3), (0.05, 0.1))


@pytest.fixture
def forget():  # type: ignore[no-untyped-def]
    yield
    for name in ("models.stems.mean", "jobs.recipes.spread"):  # nothing else: torch cannot be imported twice
        sys.modules.pop(name, None)


def a_batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(4, 1, 2, 8, 8, generator=draw) * 0.05 + 0.2
    here = torch.ones(4, 1, dtype=torch.bool)
    tiles = Tiles(pixels, here[..., None, None].expand(4, 1, 8, 8), here, torch.zeros(4, 1).double(), SPEC.bands, "1", 10.0)
    return Batch({"it": tiles}, torch.zeros(4, 2).double())


def test_a_stem_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None) -> None:
    (tmp_path / "mean.py").write_text(STEM)
    monkeypatch.setattr(stems, "__path__", [*stems.__path__, str(tmp_path)])
    config = importlib.import_module("models.stems.mean").MeanStemConfig()
    encoder = Encoder(EncoderConfig(VitConfig(8, 1, 2), 20.0, (SPEC,), hidden="absent", stem=config))
    encoder.save(tmp_path / "model")
    again = Encoder.load(tmp_path / "model")
    assert again.config.stem == config
    assert torch.equal(again.encode(a_batch())["it"].pooled, encoder.encode(a_batch())["it"].pooled)


def test_an_objective_and_its_recipe_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None) -> None:
    (tmp_path / "spread.py").write_text(RECIPE)
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    recipe = recipes.load_recipe("pretrain", "spread_tiny")
    model = recipe.build((SPEC,), torch.Generator().manual_seed(0))
    losses = []
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        loss = model(a_batch(), torch.Generator())["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_sensor_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "planetscope.yaml"
    path.write_text(SENSOR)
    sensor = load_sensor(str(path))
    assert sensor.band("nir").wavelength_nm == 865
