"""MAE: masked autoencoder of patches (He et al. 2022, arXiv 2111.06377)."""

from dataclasses import dataclass, field, replace

import torch

from cluster.engine import OptimiserConfig
from cluster.training import TrainConfig
from models.encoder import EncoderConfig
from models.objectives.mae import Mae, MaeConfig
from models.sensor import SensorSpec
from models.vit import VitConfig, vit_size
from pipeline.augment import AugmentConfig
from pipeline.stream import StreamConfig
from pipeline.views import Single

KIND = "pretrain"


@dataclass(frozen=True)
class MaeRecipe:
    """A complete MAE run; the sensors and their statistics come from the archive."""

    backbone: VitConfig
    token_size_m: float
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    normalise_patches: bool = True
    train: TrainConfig = field(default_factory=TrainConfig)

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Mae:
        decoder = VitConfig(self.decoder_width, self.decoder_depth, self.decoder_heads, has_class_token=False)
        encoder = EncoderConfig(self.backbone, self.token_size_m, sensors, hidden="absent")
        return Mae(encoder, MaeConfig(decoder, self.mask_ratio, self.normalise_patches), generator)


def mae() -> MaeRecipe:
    """MAE small enough for two CPU cores, on sites of 640 m: `terraloom pretrain mae ARCHIVE RUN`.

    Deviations from the paper: several sensors, one a batch in turn, each with a stem and a last layer of its own; tokens of
    40 m of ground; symmetries of the square instead of resized crops; a small transformer and few samples. Kept: 75 % of the
    tokens hidden, encoder without them, squared error on hidden patches scaled to unit variance each.
    """
    return MaeRecipe(
        VitConfig(embed_dim=128, depth=6, num_heads=4),
        token_size_m=40.0,
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=4,
        train=TrainConfig(num_steps=600, view=Single(), optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=60)),
    )


def mae_tiny() -> MaeRecipe:
    """The same mathematics in about a minute on two CPU cores, for tests and first tries."""
    recipe = mae()
    return replace(
        recipe,
        backbone=VitConfig(embed_dim=48, depth=2, num_heads=2),
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
        train=replace(recipe.train, num_steps=60, batch_size=8, checkpoint_every=20, optimiser=OptimiserConfig(warmup_steps=10)),
    )


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
    batch, per_epoch = 4096, 1_281_167 // 4096
    lanes, patch = 64, 14 if size == "huge" else 16
    rate = OptimiserConfig(learning_rate=1.5e-4 * batch / 256, warmup_steps=40 * per_epoch, weight_decay=0.05, final_rate_share=0.0)
    return MaeRecipe(
        vit_size(size),
        token_size_m=10.0 * patch,
        train=TrainConfig(
            num_steps=800 * per_epoch,
            batch_size=batch // lanes,
            lanes=lanes,
            workers=8,
            gpus_per_worker=1.0,
            view=Single(),
            stream=StreamConfig(augment=AugmentConfig(crop_area=(0.2, 1.0))),
            optimiser=rate,
        ),
    )
