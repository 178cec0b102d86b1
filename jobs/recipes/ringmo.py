"""RingMo: single pixels inside blocks hidden at the input (Sun et al. 2022, IEEE TGRS, 10.1109/TGRS.2022.3194732)."""

from dataclasses import dataclass, replace

import torch

from jobs.recipes.masked_images import SWIN_BASE, MaskedImageRecipe, as_published, tiny_image, two_cores
from models.objectives.ringmo import Ringmo, RingmoConfig
from models.sensor import SensorSpec
from models.stems.steps import StepStemConfig
from models.swin import SwinConfig
from models.vit import VitConfig, vit_size

KIND = "pretrain"
IMAGES = 2_000_000
"""Images of the data set that the paper trains on, which is not public."""


@dataclass(frozen=True)
class RingmoRecipe(MaskedImageRecipe):
    """A complete RingMo run."""

    pixel_ratio: float = 0.6
    """Share of a chosen block's pixels that is hidden."""

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Ringmo:
        encoder = replace(self.encoder(sensors), stem=StepStemConfig())
        config = RingmoConfig(encoder, self.mask_ratio, self.mask_block_m, pixel_ratio=self.pixel_ratio)
        return Ringmo(config, generator)


def ringmo() -> RingmoRecipe:
    """RingMo small enough for two CPU cores, on sites of 640 m: `terraloom pretrain ringmo ARCHIVE RUN`, about five minutes.

    Deviations from the paper: those of `simmim`, on whose shape it stands so that the two can be compared, and a mask token
    where more than half of a patch was never observed. Kept: 60 % of the pixels in 60 % of the blocks zeroed at the input in
    all bands, a stem of three steps, L1 on hidden pixels.
    """
    return RingmoRecipe(**two_cores())


def ringmo_tiny() -> RingmoRecipe:
    """`ringmo` in well under a minute on two CPU cores, for tests and first tries."""
    recipe = ringmo()
    return replace(recipe, **tiny_image(recipe))


def ringmo_swin_base() -> RingmoRecipe:
    """The published Swin-B and its schedule: 200 epochs of 2 M images, 20 of them warm-up, 128 images on each of 8 devices.

    Meant for tiles of 192 x 192 px of 10 m (`--site-size-m 1920`); 95.67 % on NWPU-RESISC45 when fine-tuned, as published.
    Learning rate 1e-4 for 512 images, AdamW (0.9, 0.999), weight decay 0.05, crops of 20 to 100 %. How many devices there
    were is not published. Deviations: those of `ringmo` in sensors and error; crops are square.
    """
    return _published(SWIN_BASE)


def ringmo_vit_base() -> RingmoRecipe:
    """The published ViT-B with patches of 16 px, for tiles of 224 x 224 px (`--site-size-m 2240`): see `ringmo_swin_base`."""
    return _published(vit_size("base", drop_path=0.1))


def _published(backbone: SwinConfig | VitConfig) -> RingmoRecipe:
    batch = 128 * 8
    schedule = as_published(
        backbone, least_area=0.2, images=IMAGES, epochs=200, batch=batch, warmup_epochs=20, rate=1e-4 * batch / 512
    )
    return RingmoRecipe(**schedule)
