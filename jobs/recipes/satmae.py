"""SatMAE: masked autoencoding over dates or groups of bands (Cong et al. 2022, arXiv 2207.08051)."""

from dataclasses import dataclass, replace

import torch

from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import published
from models.objectives.satmae import (
    DECODER_GROUP_WIDTH,
    DECODER_TIME_WIDTH,
    GROUP_WIDTH,
    TIME_WIDTH,
    Masking,
    Satmae,
    SatmaeConfig,
    group_encoder,
    temporal_encoder,
)
from models.position_embedding import PositionConfig
from models.sensor import SensorSpec
from models.vit import vit_size
from pipeline.views import DateStack, Single

KIND = "pretrain"
FMOW_SENTINEL, FMOW_RGB = 712_874, 363_571
"""Training images of fMoW-Sentinel and of fMoW-RGB."""


@dataclass(frozen=True)
class SatmaeTemporalRecipe(AutoencoderRecipe):
    """Several dates of a place."""

    time_width: int = TIME_WIDTH
    decoder_time_width: int = DECODER_TIME_WIDTH

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Satmae:
        encoder = temporal_encoder(self.backbone, self.token_size_m, sensors, self.time_width)
        positions = PositionConfig(time_width=self.decoder_time_width)
        return Satmae(encoder, SatmaeConfig(self.decoder, self.mask_ratio, self.normalise_patches, positions), generator)


@dataclass(frozen=True)
class SatmaeGroupRecipe(AutoencoderRecipe):
    """Groups of bands."""

    group_width: int = GROUP_WIDTH
    decoder_group_width: int = DECODER_GROUP_WIDTH
    is_consistent: bool = False
    """Hide the same places in every group, instead of each token by itself."""

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Satmae:
        encoder = group_encoder(self.backbone, self.token_size_m, sensors, self.group_width)
        positions = PositionConfig(group_width=self.decoder_group_width)
        masking: Masking = "consistent" if self.is_consistent else "independent"
        config = SatmaeConfig(self.decoder, self.mask_ratio, self.normalise_patches, positions, masking=masking)
        return Satmae(encoder, config, generator)


def satmae_temporal() -> SatmaeTemporalRecipe:
    """Temporal SatMAE small enough for two CPU cores: three dates of a place, 75 % of all their tokens hidden.

    Deviations from the paper: several sensors, one a batch in turn; tokens of 40 m; 48 of 128 channels for time; dates spread
    over the archive's time instead of drawn at random.
    """
    return SatmaeTemporalRecipe(**two_cores(DateStack(num_dates=3)), time_width=48, decoder_time_width=36)


def satmae_temporal_tiny() -> SatmaeTemporalRecipe:
    """`satmae_temporal` in about a minute on two CPU cores."""
    recipe = tiny_autoencoder(satmae_temporal(), time_width=12, decoder_time_width=12)
    return replace(recipe, train=replace(recipe.train, batch_size=8, num_steps=80))


def satmae_temporal_large() -> SatmaeTemporalRecipe:
    """The published ViT-L/16 at 224 px with three dates: batch 1024, rate 1.5e-4 for 256 images.

    Assumed: 100 epochs of fMoW-RGB, 20 of them warm-up.
    """
    train = published(images=FMOW_RGB, epochs=100, batch=1024, warmup_epochs=20, rate=1.5e-4 * 4, view=DateStack(num_dates=3))
    return SatmaeTemporalRecipe(vit_size("large"), token_size_m=160.0, train=train)


def satmae_group() -> SatmaeGroupRecipe:
    """Group SatMAE small enough for two CPU cores: three tokens of each place of Sentinel-2, hidden independently.

    Deviations from the paper: other sensors, one a batch in turn, are one group of all their bands; 32 of 128 channels for the
    group's number; tokens of 40 m; targets scaled within a group. B01 is in no group and not seen, as published.
    """
    return SatmaeGroupRecipe(**two_cores(), group_width=32, decoder_group_width=24)


def satmae_group_tiny() -> SatmaeGroupRecipe:
    """`satmae_group` in about a minute on two CPU cores."""
    return tiny_autoencoder(satmae_group(), group_width=16, decoder_group_width=8)


def satmae_group_base() -> SatmaeGroupRecipe:
    """The published ViT-B of the released weights: see `satmae_group_large`."""
    return _group("base")


def satmae_group_large() -> SatmaeGroupRecipe:
    """The published ViT-L with patches of 8 px at 96 px: batch 4096, rate 1e-4 for 256 images, 200 epochs of fMoW-Sentinel."""
    return _group("large")


def _group(size: str) -> SatmaeGroupRecipe:
    train = published(images=FMOW_SENTINEL, epochs=200, batch=4096, warmup_epochs=20, rate=1e-4 * 16, view=Single())
    return SatmaeGroupRecipe(vit_size(size), token_size_m=80.0, train=train)
