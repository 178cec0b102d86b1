"""Prithvi: masked autoencoding of dates with three-dimensional positions (arXiv 2310.18660, arXiv 2412.02732)."""

from dataclasses import dataclass, replace

import torch

from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import published
from models.objectives.prithvi import V1, V2, Prithvi, PrithviConfig, prithvi_encoder
from models.sensor import SensorSpec
from models.vit import VitConfig, vit_size
from pipeline.views import DateStack

KIND = "pretrain"
HLS_SAMPLES = 4_200_000
"""Training samples of version 2."""


@dataclass(frozen=True)
class PrithviRecipe(AutoencoderRecipe):
    """Several dates of a place."""

    normalise_patches: bool = False
    has_metadata: bool = False
    """Tell encoder and decoder time and location (version 2)."""

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Prithvi:
        positions = V2 if self.has_metadata else V1
        encoder = prithvi_encoder(self.backbone, self.token_size_m, sensors, positions)
        return Prithvi(encoder, PrithviConfig(self.decoder, self.mask_ratio, self.normalise_patches, positions), generator)


def prithvi() -> PrithviRecipe:
    """Prithvi 1 small enough for two CPU cores: three dates of a place, 75 % of all their tokens hidden.

    Deviations from the paper: several sensors, one a batch in turn; tokens of 40 m. Targets are not scaled by patch, as
    published; the class token is the embedding.
    """
    return PrithviRecipe(**two_cores(DateStack(num_dates=3), normalise_patches=False))


def prithvi_tiny() -> PrithviRecipe:
    """`prithvi` in about a minute on two CPU cores."""
    recipe = tiny_autoencoder(prithvi())
    return replace(recipe, train=replace(recipe.train, batch_size=8, num_steps=80))


def prithvi_v2() -> PrithviRecipe:
    """Prithvi 2 small enough for two CPU cores: as `prithvi`, with four dates, told time and location."""
    return PrithviRecipe(**two_cores(DateStack(num_dates=4), normalise_patches=False), has_metadata=True)


def prithvi_v2_tiny() -> PrithviRecipe:
    """`prithvi_v2` in about a minute on two CPU cores."""
    recipe = tiny_autoencoder(prithvi_v2())
    return replace(recipe, train=replace(recipe.train, batch_size=8, num_steps=80))


def prithvi_100m() -> PrithviRecipe:
    """The published version 1: ViT-B/16, three dates of 224 px of 30 m, decoder of 8 blocks of 512.

    The schedule is assumed: MAE's rate and batch, 400 epochs of the samples of version 2, 20 of them warm-up.
    """
    return _published(vit_size("base"), 16, 3, has_metadata=False)


def prithvi_v2_300m() -> PrithviRecipe:
    """The published ViT-L/16 with four dates, time and location; schedule as `prithvi_100m`."""
    return _published(vit_size("large"), 16, 4, has_metadata=True)


def prithvi_v2_600m() -> PrithviRecipe:
    """The published ViT-H/14 with four dates, time and location; schedule as `prithvi_100m`."""
    return _published(vit_size("huge"), 14, 4, has_metadata=True)


def _published(backbone: VitConfig, patch_px: int, dates: int, has_metadata: bool) -> PrithviRecipe:
    train = published(
        images=HLS_SAMPLES, epochs=400, batch=4096, warmup_epochs=20, rate=1.5e-4 * 16, view=DateStack(num_dates=dates)
    )
    return PrithviRecipe(backbone, token_size_m=30.0 * patch_px, has_metadata=has_metadata, train=train)
