"""DOFA: weights generated from wavelengths (Xiong et al. 2024, arXiv 2403.15356)."""

from dataclasses import dataclass, replace
from typing import Self

import torch

from jobs.distill import load_encoder, model_folder
from jobs.recipes.autoencoder import AutoencoderRecipe, tiny_autoencoder, two_cores
from jobs.recipes.schedules import published
from models.objectives.dofa import Dofa, DofaConfig, TaughtDofa, dofa_encoder
from models.sensor import SensorSpec
from models.stems.dofa import DofaStemConfig
from models.vit import vit_size
from pipeline.views import Single

KIND = "pretrain"


@dataclass(frozen=True)
class DofaRecipe(AutoencoderRecipe):
    """One generated stem for all sensors."""

    kernel_px: int = 16
    teacher: str | None = None
    """Folder of a finished pretrain or distill run of the same sensors, or of its model; local or s3://. Without: no such term."""
    teacher_weight: float = 1.0

    def located(self) -> Self:
        """Return the recipe with its teacher's model folder, the same for every worker."""
        return replace(self, teacher=model_folder(self.teacher)) if self.teacher else self

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Dofa:
        encoder = dofa_encoder(self.backbone, self.token_size_m, sensors, DofaStemConfig(kernel_px=self.kernel_px))
        config = DofaConfig(self.decoder, self.mask_ratio, self.normalise_patches, teacher_weight=self.teacher_weight)
        if self.teacher:
            return TaughtDofa(encoder, config, load_encoder(self.teacher), generator)
        return Dofa(encoder, config, generator)


def dofa() -> DofaRecipe:
    """DOFA small enough for two CPU cores: `terraloom pretrain dofa ARCHIVE RUN`.

    Deviations from the paper: the cosine to a frozen teacher only with --teacher, an encoder of one's own of the same sensors
    (the weights of the published ImageNet transformer come with a library that is no part of this project); kernels of 4 px,
    resampled to each sensor's pixels in a token of 40 m, instead of images resampled to 224 px; the decoder has wavelength
    codes of its own. Kept: that VV and VH are not told apart, and that heights, like radar, are given 3.75 um.
    """
    return DofaRecipe(**two_cores(), kernel_px=4)


def dofa_tiny() -> DofaRecipe:
    """`dofa` in about a minute on two CPU cores."""
    return tiny_autoencoder(dofa())


def dofa_base() -> DofaRecipe:
    """The published ViT-B with kernels of 16 px: see `dofa_large`."""
    return _published("base")


def dofa_large() -> DofaRecipe:
    """The published ViT-L: batch 192, rate 1e-4 for 256 images, 120 epochs.

    Assumed: 400 000 images an epoch, 10 epochs of warm-up.
    """
    return _published("large")


def _published(size: str) -> DofaRecipe:
    train = published(images=400_000, epochs=120, batch=192, warmup_epochs=10, rate=1e-4 * 192 / 256, view=Single())
    return DofaRecipe(vit_size(size), token_size_m=160.0, train=train)
