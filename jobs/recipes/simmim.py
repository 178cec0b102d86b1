"""SimMIM: blocks of ground hidden by a mask token, their pixels predicted by one linear map (arXiv 2111.09886)."""

from dataclasses import dataclass, replace

import torch

from jobs.recipes.masked_images import SWIN_BASE, MaskedImageRecipe, as_published, tiny_image, two_cores
from jobs.recipes.schedules import IMAGENET
from models.objectives.simmim import Simmim, SimmimConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.vit import VitConfig, vit_size

KIND = "pretrain"


@dataclass(frozen=True)
class SimmimRecipe(MaskedImageRecipe):
    """A complete SimMIM run."""

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Simmim:
        return Simmim(SimmimConfig(self.encoder(sensors), self.mask_ratio, self.mask_block_m), generator)


def simmim() -> SimmimRecipe:
    """SimMIM small enough for two CPU cores, on sites of 640 m: `terraloom pretrain simmim ARCHIVE RUN`, about five minutes.

    Deviations from the paper (Xie et al. 2022): several sensors, one a batch in turn, each with a stem and a last layer of its
    own; tokens of 40 m and blocks of 80 m of ground instead of 4 and 32 px; three Swin stages of width 48 to 192; the error is
    divided by each sample's hidden valid pixels, not by the batch's; symmetries of the square instead of resized crops; an
    embedding is the mean of every stage's map. Kept: 60 % hidden, one mask token, one linear map and pixel shuffle, L1.
    """
    return SimmimRecipe(**two_cores())


def simmim_tiny() -> SimmimRecipe:
    """`simmim` in well under a minute on two CPU cores, for tests and first tries."""
    recipe = simmim()
    return replace(recipe, **tiny_image(recipe))


def simmim_swin_base() -> SimmimRecipe:
    """The published Swin-B (89.9 M parameters with RGB) and its schedule: 800 epochs of 2048 images, 10 of them warm-up.

    Meant for tiles of 192 x 192 px of 10 m (`--site-size-m 1920`); 83.5 to 84.0 % on ImageNet when fine-tuned, as published.
    Learning rate 1e-4 for 512 images, AdamW (0.9, 0.999), weight decay 0.05, gradients clipped at 5, crops of 67 to 100 %.
    The rate is a tenth after epoch 700. Deviations: those of `simmim` in sensors and error; crops are square.
    """
    return _published(SWIN_BASE)


def simmim_vit_base() -> SimmimRecipe:
    """The published ViT-B with patches of 16 px and its schedule, that of `simmim_swin_base`; 83.8 % on ImageNet as published.

    Meant for tiles of 224 x 224 px of 10 m (`--site-size-m 2240`). Drops paths with up to 0.1. Further deviations: fixed sines
    and cosines as positions instead of a relative bias that all layers share, and no layer scale.
    """
    return _published(vit_size("base", drop_path=0.1))


def _published(backbone: SwinConfig | VitConfig) -> SimmimRecipe:
    schedule = as_published(
        backbone,
        least_area=0.67,
        images=IMAGENET,
        epochs=800,
        batch=2048,
        warmup_epochs=10,
        rate=1e-4 * 2048 / 512,
        optimiser={"decay_at": (700 / 800,)},
    )
    return SimmimRecipe(**schedule)
