"""S2MAE and SpectralGPT: masked autoencoding of spectral cubes (CVPR 2024; arXiv 2311.07113)."""

from dataclasses import dataclass

import torch

from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import published
from models.objectives.s2mae import S2mae, S2maeConfig, cube_encoder, cube_positions
from models.sensor import SensorSpec
from models.stems.cubes import CubeStemConfig
from models.vit import vit_size
from pipeline.views import Single

KIND = "pretrain"
FMOW_SENTINEL = 712_874


@dataclass(frozen=True)
class S2maeRecipe(AutoencoderRecipe):
    """Cubes of bands_per_cube bands; cube: tokens that are hidden together, along the spectrum, rows and columns."""

    mask_ratio: float = 0.9
    bands_per_cube: int = 3
    learned_grid: int = 12
    cube: tuple[int, ...] = (1, 1, 1)
    sum_weight: float = 0.0

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> S2mae:
        encoder = cube_encoder(self.backbone, self.token_size_m, sensors, self.bands_per_cube, self.learned_grid)
        positions = cube_positions(CubeStemConfig(bands_per_cube=self.bands_per_cube), sensors, self.learned_grid)
        config = S2maeConfig(
            self.decoder, self.mask_ratio, self.normalise_patches, positions, cube=self.cube, sum_weight=self.sum_weight
        )
        return S2mae(encoder, config, generator)


def s2mae() -> S2maeRecipe:
    """S2MAE small enough for two CPU cores: 90 % of all cubes of three bands and 40 m hidden.

    Deviations from the paper: no code is public, so sizes, learned positions and the squared error are its sibling
    SpectralGPT's; several sensors, one a batch in turn, each with a projection of its own; no second stage on other data.
    """
    return S2maeRecipe(**two_cores(mask_ratio=0.9, normalise_patches=False), learned_grid=16)


def s2mae_tiny() -> S2maeRecipe:
    """`s2mae` in about a minute on two CPU cores."""
    return tiny_autoencoder(s2mae())


def spectral_gpt_base() -> S2maeRecipe:
    """SpectralGPT's published ViT-B: 96 px, cubes of 8 px and 3 bands, also the sum over the spectrum as a target.

    Decoder of 4 blocks of 512; batch 4096, rate 2e-4 for 256 images, 200 epochs of fMoW-Sentinel (first stage).
    """
    train = published(images=FMOW_SENTINEL, epochs=200, batch=4096, warmup_epochs=20, rate=2e-4 * 16, view=Single())
    return S2maeRecipe(vit_size("base"), token_size_m=80.0, decoder_depth=4, normalise_patches=False, sum_weight=1.0, train=train)
