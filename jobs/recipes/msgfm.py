"""msGFM: cross-sensor masked image modelling with a mixture of experts (Han et al., CVPR 2024, arXiv 2404.01260)."""

from dataclasses import dataclass, replace

import torch

from jobs.recipes.masked_images import SWIN_BASE, SWIN_SMALL, MaskedImageRecipe, as_published, two_cores
from jobs.recipes.schedules import tiny
from models.moe import MoEConfig
from models.objectives.msgfm import Msgfm, MsgfmConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from pipeline.views import CrossSensor

KIND = "pretrain"


@dataclass(frozen=True)
class MsgfmRecipe(MaskedImageRecipe):
    """A complete msGFM run."""

    cross_sensor_probability: float = 0.5
    balance_weight: float = 0.01

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Msgfm:
        encoder = self.encoder(sensors)
        config = MsgfmConfig(encoder, self.mask_ratio, self.mask_block_m, self.balance_weight, self.cross_sensor_probability)
        return Msgfm(config, generator)


def msgfm() -> MsgfmRecipe:
    """msGFM small enough for two CPU cores: `terraloom pretrain msgfm ARCHIVE RUN`, five to six minutes on the demo's planet.

    Deviations from the paper: three Swin stages of width 48 to 192 instead of Swin-B; tokens of fixed ground size (40 m)
    instead of fixed pixels, so that sensors of different pixel size share one mask; mask blocks of 80 m on sites of
    640 m; 38 k samples instead of 800 epochs of 2 M images. Kept: one sensor per batch cycling over the set's sensors,
    the paired sensor as target with probability 0.5, 8 experts, top-1, capacity 1.25 in every other block of the deepest
    stage, L1 on hidden pixels + 0.01 load balance, from scratch. An embedding is the mean of every stage's map, not the last's.
    """
    shape = two_cores(CrossSensor())
    return MsgfmRecipe(**{**shape, "backbone": replace(SWIN_SMALL, moe=MoEConfig(), moe_stages=(2,))})


def msgfm_tiny() -> MsgfmRecipe:
    """`msgfm` in well under a minute on two CPU cores, for tests and first tries."""
    recipe = msgfm()
    backbone = SwinConfig(embed_dim=32, depths=(1, 2), num_heads=(2, 4), window=4, moe=MoEConfig(num_experts=4), moe_stages=(1,))
    return replace(recipe, backbone=backbone, train=tiny(recipe.train, batch_size=8))


def msgfm_base() -> MsgfmRecipe:
    """The published Swin-B with 8 experts in every other block of its third stage, nine blocks, and its schedule.

    Meant for tiles of 192 x 192 px of 10 m (`--site-size-m 1920`): 800 epochs of 2 M images, 128 on each of 8 devices;
    87.5 micro-mAP on a tenth of BigEarthNet when fine-tuned, as published. Code and weights were not: patch, block, ratio,
    optimiser and warm-up are those of GFM, whose line it continues. Deviations: one batch size and one rate, those of RGB
    (1e-4 for 512 images), for all sensors, where the paper has smaller ones for rarer sensors; pixels of one size.
    """
    schedule = as_published(
        replace(SWIN_BASE, moe=MoEConfig(), moe_stages=(2,)),
        least_area=0.67,
        images=2_000_000,
        epochs=800,
        batch=1024,
        warmup_epochs=10,
        rate=1e-4 * 1024 / 512,
        view=CrossSensor(),
    )
    return MsgfmRecipe(**schedule)
