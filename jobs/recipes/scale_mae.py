"""Scale-MAE: a tile at half its resolution predicts itself in two bands (Reed et al., ICCV 2023, arXiv 2212.14532)."""

from dataclasses import dataclass

import torch

from cluster.optimiser import OptimiserConfig
from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import published, tiny
from models.encoder import EncoderConfig
from models.objectives.scale_mae import ScaleMae, ScaleMaeConfig
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig
from models.vit import vit_size
from pipeline.views import Single

KIND = "pretrain"
FMOW_RGB = 363_571
"""Images of the training split that the paper trains on."""


@dataclass(frozen=True)
class ScaleMaeRecipe(AutoencoderRecipe):
    """A complete Scale-MAE run."""

    decoder_depth: int = 3
    normalise_patches: bool = False
    window_area: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of a tile's ground that a sample shows."""
    head_width: int = 512
    head_depth: int = 2

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> ScaleMae:
        stem = SensorStemConfig(has_norm=False)
        encoder = EncoderConfig(self.backbone, self.token_size_m, sensors, hidden="absent", stem=stem)
        config = ScaleMaeConfig(
            self.decoder,
            self.mask_ratio,
            self.normalise_patches,
            window_area=self.window_area,
            head_width=self.head_width,
            head_depth=self.head_depth,
        )
        return ScaleMae(encoder, config, generator)


def scale_mae() -> ScaleMaeRecipe:
    """Scale-MAE small enough for two CPU cores, on sites of 640 m: `terraloom pretrain scale_mae ARCHIVE RUN`.

    Deviations from the paper: several sensors, one a batch in turn, each with a stem and last layers of its own; tokens of
    40 m of ground (80 m at half the resolution); a token's scale is relative to the encoder's, so that whole tiles have 1,
    where the paper multiplies all by 2.5 in pretraining and not afterwards; windows are enlarged linearly, not by cubics; the
    low band is cut as the paper describes, not at the input's resolution alone as its code does; errors are means over
    bands. Kept: half the resolution as input, windows of 20 to 100 % of the tile, 75 % of the tokens hidden, squared error
    on the low band and absolute on the high one, on hidden ground only.
    """
    return ScaleMaeRecipe(**two_cores(head_width=64, normalise_patches=False))


def scale_mae_tiny() -> ScaleMaeRecipe:
    """`scale_mae` in well under a minute on two CPU cores, for tests and first tries; at a rate high enough to be seen to learn."""
    recipe = scale_mae()
    train = tiny(recipe.train, optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=10))
    return tiny_autoencoder(recipe, head_width=32, head_depth=1, train=train)


def scale_mae_large() -> ScaleMaeRecipe:
    """The published ViT-L (322.9 M parameters) and its schedule: 800 epochs of fMoW-RGB, 20 of them warm-up.

    Meant for tiles of 448 x 448 px of 10 m (`--site-size-m 4480`), seen at 224 with tokens of 16 px; 78.9 mIoU on SpaceNet v1
    as published. Learning rate 1.5e-4 for 256 images, AdamW (0.9, 0.95), weight decay 0.05. The size of the batch is not
    published; 1024 here. Deviations: those of `scale_mae`.
    """
    train = published(images=FMOW_RGB, epochs=800, batch=1024, warmup_epochs=20, rate=1.5e-4 * 4, view=Single())
    return ScaleMaeRecipe(vit_size("large"), token_size_m=160.0, train=train)
