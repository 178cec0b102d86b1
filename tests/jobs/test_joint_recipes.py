"""Recipes of joint embeddings: published sizes, batches and rates, and that options have one name each."""

from typing import Any

import pytest
import torch
import tyro
from tyro.conf import AvoidSubcommands, OmitArgPrefixes

from jobs.recipes import recipes
from jobs.recipes.joint import JointRecipe
from models.batch import Batch, Tiles
from models.sensor import SensorSpec

RGB = SensorSpec("rgb", "passive", "digital_number", "1", 10.0, ("r", "g", "b"), (None,) * 3, (0.4,) * 3, (0.2,) * 3)
JOINT = {name: recipe() for name, recipe in recipes("pretrain").items() if isinstance(recipe(), JointRecipe)}
RESNET50 = 23_508_032
VIT_SMALL, VIT_BASE = 21_665_664 - 197 * 384, 85_798_656 - 197 * 768
"""As published, without the positions of 196 tokens and a class token, which are fixed here and no parameters."""
PUBLISHED = {
    "simclr_resnet50": (RESNET50, 4096, 4.8, 1000),
    "temporal_simclr_resnet50": (RESNET50, 4096, 4.8, 1000),
    "moco_resnet50": (RESNET50, 256, 0.03, 200),
    "temporal_moco_resnet50": (RESNET50, 256, 0.03, 200),
    "moco_v3_vit_small": (VIT_SMALL, 4096, 0.0024, 300),
    "moco_v3_vit_base": (VIT_BASE, 4096, 0.0024, 300),
    "byol_resnet50": (RESNET50, 4096, 3.2, 1000),
    "rs_byol_three_resnet50": (RESNET50, 1024, 1.8, 100),
    "dino_vit_small": (VIT_SMALL, 1024, 0.002, 800),
    "dino_vit_base": (VIT_BASE, 1024, 0.002, 400),
    "barlow_twins_resnet50": (RESNET50, 2048, 1.6, 1000),
    "vicreg_resnet50": (RESNET50, 2048, 1.6, 1000),
    "seco_resnet18": (11_176_512, 256, 0.03, 200),
    "seco_resnet50": (RESNET50, 256, 0.03, 200),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    """Parameters of the encoder, batch, rate, epochs."""
    parameters, batch, rate, epochs = PUBLISHED[name]
    train = JOINT[name].train
    with torch.device("meta"):
        encoder = JOINT[name].build((RGB,), torch.Generator()).encoder
    mask_token = encoder.config.backbone.embed_dim if encoder.mask_token is not None else 0
    assert encoder.num_parameters - mask_token == parameters
    assert train.lanes * train.batch_size == batch
    assert train.optimiser.learning_rate == pytest.approx(rate)
    assert train.num_steps == epochs * train.checkpoint_every
    if not name.startswith("dino"):
        assert train.lanes == train.most


def test_a_swin_is_pooled_to_moments_and_learns() -> None:
    """Two crops of one tile are told from other tiles' after a few steps."""
    recipe, generator = JOINT["simclr_swin_tiny"], torch.Generator().manual_seed(0)
    model = recipe.build((RGB,), generator)
    assert (model.encoder.config.pool, recipe.train.share_exponent) == ("moments", 0.3)
    level, losses = torch.linspace(-1, 1, 8).view(8, 1, 1, 1, 1), []
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(12):
        crops = [level + torch.randn(8, 1, 3, 32, 32, generator=generator) * 0.3 for _ in range(2)]
        views = [Batch({"rgb": tiles(pixels * 0.2 + 0.4)}, torch.full((8, 2), torch.nan)) for pixels in crops]
        loss = model(Batch(views[0].tiles, views[0].lonlat, 0, tuple(views)), generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def tiles(pixels: torch.Tensor) -> Tiles:
    is_valid, days = torch.ones(len(pixels), 1, *pixels.shape[-2:], dtype=torch.bool), torch.zeros(len(pixels), 1)
    return Tiles(pixels, is_valid, days == 0, days.double(), RGB.bands, RGB.unit, RGB.gsd_m)


@pytest.mark.parametrize("kind", sorted({type(recipe) for recipe in JOINT.values()}, key=lambda kind: kind.__name__))
def test_every_option_has_one_name(kind: type) -> None:
    """tyro drops prefixes, so two settings of one name could not be told apart."""
    recipe = next(recipe for recipe in JOINT.values() if type(recipe) is kind)
    wanted: Any = OmitArgPrefixes[kind]  # type: ignore[valid-type]
    changed = tyro.cli(wanted, default=recipe, args=["--learning-rate", "0.5", "--seed", "3"],
                       config=(AvoidSubcommands,))  # fmt: skip
    assert (changed.train.optimiser.learning_rate, changed.train.seed) == (0.5, 3)
    assert changed.backbone == recipe.backbone


def test_every_family_has_a_tiny_recipe_of_the_same_mathematics() -> None:
    for name in (name for name in JOINT if not name.endswith("_tiny") and name not in PUBLISHED and "resnet50" not in name):
        tiny, small = JOINT[f"{name}_tiny"], JOINT[name]
        assert type(tiny) is type(small)
        assert (tiny.train.num_steps, tiny.train.batch_size) == (60, 16)
        assert (tiny.train.view, tiny.train.stream) == (small.train.view, small.train.stream)
