"""GFM: SimMIM kept close to a frozen teacher (Mendieta et al., ICCV 2023, arXiv 2302.04476)."""

from dataclasses import dataclass, replace
from typing import Self

import torch

from jobs.distill import load_encoder, model_folder
from jobs.recipes.masked_images import SWIN_BASE, MaskedImageRecipe, as_published, tiny_image, two_cores
from models.objectives.gfm import Gfm, GfmConfig
from models.sensor import SensorSpec
from pipeline.errors import InputError

KIND = "pretrain"


@dataclass(frozen=True)
class GfmRecipe(MaskedImageRecipe):
    """A complete GFM run."""

    teacher: str = ""
    """Folder of a finished pretrain or distill run of the same sensors, or of its model; local or s3://."""
    teacher_weight: float = 1.0

    def located(self) -> Self:
        """Return the recipe with its teacher's model folder, the same for every worker, or raise InputError without one."""
        if not self.teacher:
            raise InputError("gfm has no teacher, expected the folder of a finished run or of its model; give --teacher RUN")
        return replace(self, teacher=model_folder(self.teacher))

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator | None) -> Gfm:
        config = GfmConfig(self.encoder(sensors), self.mask_ratio, self.mask_block_m, teacher_weight=self.teacher_weight)
        return Gfm(config, load_encoder(self.teacher), generator)


def gfm() -> GfmRecipe:
    """GFM small enough for two CPU cores, on sites of 640 m: `terraloom pretrain gfm ARCHIVE RUN --teacher RUN`.

    Deviations from the paper: those of `simmim`, on whose shape it stands; the teacher is an encoder of one's own on the same
    sensors (of `simmim`, `msgfm`, ...), at the tiles' own size, not a Swin-B of ImageNet-22k on images enlarged to 224 px,
    whose weights come with a library that is no part of this project. Kept: 60 % hidden and L1 as SimMIM's; minus the cosine
    of the means of what enters the last stage, the student's after a linear map; both with weight 1; a student from scratch.
    """
    return GfmRecipe(**two_cores())


def gfm_tiny() -> GfmRecipe:
    """`gfm` in well under a minute on two CPU cores, for tests and first tries; it needs a --teacher too."""
    recipe = gfm()
    return replace(recipe, **tiny_image(recipe))


def gfm_swin_base() -> GfmRecipe:
    """The published Swin-B and its schedule: 100 epochs of 600 000 images, 10 of them warm-up, 1024 a batch.

    Meant for tiles of 192 x 192 px of 10 m (`--site-size-m 1920`); 93.3 V100-hours and 59.82 F1 on OSCD as published.
    Learning rate 2e-4 for 512 images, AdamW (0.9, 0.999), weight decay 0.05, gradients clipped at 5, crops of 67 to 100 %.
    Deviations: those of `gfm` in teacher, sensors and error; crops are square.
    """
    schedule = as_published(
        SWIN_BASE, least_area=0.67, images=600_000, epochs=100, batch=1024, warmup_epochs=10, rate=2e-4 * 1024 / 512
    )
    return GfmRecipe(**schedule)
