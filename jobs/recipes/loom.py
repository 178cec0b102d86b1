"""Loom: cross-sensor masked modelling over described bands, our own."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import published
from models.moe import MoEConfig
from models.objectives.loom import Loom, LoomConfig, loom_encoder
from models.sensor import SensorSpec
from models.stems.dofa import DofaStemConfig
from models.stems.sensor import SensorStemConfig
from models.stems.spectral import FACTS, Fact, SpectralStemConfig
from models.stems.stem import StemConfig
from models.vit import VitConfig, vit_size
from pipeline.views import CrossSensor, DateStack

KIND = "pretrain"


@dataclass(frozen=True)
class LoomRecipe(AutoencoderRecipe):
    """All sensors of a site at once."""

    normalise_patches: bool = False
    cross_sensor_probability: float = 0.1
    site_weight: float = 1.0
    contrast_weight: float = 0.3
    asked_share: float = 0.25
    """Of the hidden tokens, those that are decoded: a quarter learns as well and spares a third of the operations."""
    kernel_px: int = 4
    """Side of the generated kernels, best that of a token in pixels of most sensors."""
    stems: Literal["spectral", "dofa", "sensor"] = "spectral"
    """Weights generated from `facts`; from wavelengths as published with DOFA; or each sensor's own. The last two are controls."""
    facts: tuple[Fact, ...] = FACTS
    """What describes a band; fewer are controls, too."""

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Loom:
        stems: dict[str, StemConfig] = {
            "spectral": SpectralStemConfig(kernel_px=self.kernel_px, facts=self.facts),
            "dofa": DofaStemConfig(kernel_px=self.kernel_px),
            "sensor": SensorStemConfig(has_tokens=True),
        }
        encoder = loom_encoder(self.backbone, self.token_size_m, sensors, stems[self.stems])
        config = LoomConfig(
            self.decoder,
            self.mask_ratio,
            self.normalise_patches,
            cross_sensor_probability=self.cross_sensor_probability,
            site_weight=self.site_weight,
            contrast_weight=self.contrast_weight,
            asked_share=self.asked_share,
        )
        return Loom(encoder, config, generator)


def loom() -> LoomRecipe:
    """Loom small enough for two CPU cores: `terraloom pretrain loom ARCHIVE RUN`.

    Pairs of sensors of a site, 75 % of the tokens of each hidden, a quarter of these decoded, and of every tenth sample one
    sensor hidden whole; 8 experts, top-1, in every other block; reconstruction and site with weight 1, contrast with 0.3.
    """
    backbone = VitConfig(embed_dim=128, depth=6, num_heads=4, moe=MoEConfig())
    recipe = LoomRecipe(**two_cores(CrossSensor(), normalise_patches=False, backbone=backbone))
    return replace(recipe, train=replace(recipe.train, optimiser=replace(recipe.train.optimiser, learning_rate=5e-4)))


def loom_tiny() -> LoomRecipe:
    """`loom` in about a minute on two CPU cores; at the rate of other tiny autoencoders it loses what its stem begins with."""
    backbone = VitConfig(embed_dim=48, depth=2, num_heads=2, moe=MoEConfig(num_experts=4))
    return tiny_autoencoder(loom(), learning_rate=2e-3, backbone=backbone)


def loom_series() -> LoomRecipe:
    """`loom` over time: up to twelve dates of each sensor of a site attend to one another, half of their tokens hidden."""
    recipe = replace(loom(), mask_ratio=0.5)
    return replace(recipe, train=replace(recipe.train, view=DateStack(num_dates=12)))


def loom_base() -> LoomRecipe:
    """ViT-B with 8 experts: see `loom_large`."""
    return _size("base")


def loom_large() -> LoomRecipe:
    """ViT-L with 8 experts in every other block, tokens of 16 px of 10 m, 400 epochs of a million sites in batches of 2048.

    A pair of sensors is told from those of the same micro-batch on all ranks: 256 sites on 8 GPUs.
    """
    return _size("large")


def _size(size: str) -> LoomRecipe:
    backbone = replace(vit_size(size), moe=MoEConfig())
    train = published(images=1_000_000, epochs=400, batch=2048, warmup_epochs=20, rate=1.5e-4 * 8, view=CrossSensor())
    return LoomRecipe(backbone, token_size_m=160.0, kernel_px=16, train=train)
