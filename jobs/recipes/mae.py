"""MAE: masked autoencoder of patches (He et al. 2022, arXiv 2111.06377)."""

from dataclasses import dataclass

import torch

from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import IMAGENET, published
from models.encoder import EncoderConfig
from models.objectives.mae import Mae, MaeConfig
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig
from models.vit import vit_size
from pipeline.augment import AugmentConfig
from pipeline.stream import StreamConfig
from pipeline.views import Single

KIND = "pretrain"


@dataclass(frozen=True)
class MaeRecipe(AutoencoderRecipe):
    """A complete MAE run."""

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Mae:
        stem = SensorStemConfig(has_norm=False)
        encoder = EncoderConfig(self.backbone, self.token_size_m, sensors, hidden="absent", stem=stem)
        return Mae(encoder, MaeConfig(self.decoder, self.mask_ratio, self.normalise_patches), generator)


def mae() -> MaeRecipe:
    """MAE small enough for two CPU cores, on sites of 640 m: `terraloom pretrain mae ARCHIVE RUN`.

    Deviations from the paper: several sensors, one a batch in turn, each with a stem and a last layer of its own; tokens of
    40 m of ground; symmetries of the square instead of resized crops; a small transformer and few samples. Kept: 75 % of the
    tokens hidden, encoder without them, squared error on hidden patches scaled to unit variance each.
    """
    return MaeRecipe(**two_cores())


def mae_tiny() -> MaeRecipe:
    """`mae` in about a minute on two CPU cores, for tests and first tries."""
    return tiny_autoencoder(mae())


def mae_base() -> MaeRecipe:
    """The published ViT-B (111.9 M parameters) and its schedule: see `mae_large`."""
    return _published("base")


def mae_large() -> MaeRecipe:
    """The published ViT-L (329.5 M parameters) and its schedule: 800 epochs of 4096 images, 40 of them warm-up.

    Meant for tiles of 224 x 224 px of 10 m (`--site-size-m 2240`), a token of 16 px; the number of steps is that of 1.28 M
    images. Learning rate 1.5e-4 for 256 images, AdamW (0.9, 0.95), weight decay 0.05; 42 h on 64 V100 as published.
    """
    return _published("large")


def mae_huge() -> MaeRecipe:
    """The published ViT-H with tokens of 14 px (657.1 M parameters): see `mae_large`."""
    return _published("huge")


def _published(size: str) -> MaeRecipe:
    crops = StreamConfig(augment=AugmentConfig(crop_area=(0.2, 1.0)))
    train = published(images=IMAGENET, epochs=800, batch=4096, warmup_epochs=40, rate=1.5e-4 * 16, view=Single(), stream=crops)
    return MaeRecipe(vit_size(size), token_size_m=10.0 * (14 if size == "huge" else 16), train=train)
