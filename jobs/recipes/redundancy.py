"""Redundancy reduction: Barlow Twins (arXiv 2103.03230) and VICReg (arXiv 2105.04906), of crops or of sensors."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from cluster.job import TrainConfig
from jobs.recipes.joint import LARS, JointRecipe, in_tiny, published_stream, small
from jobs.recipes.schedules import IMAGENET, published, whole_batch
from models.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from models.objectives.vicreg import Vicreg, VicregConfig
from models.resnet import ResnetConfig
from pipeline.views import CrossSensor, Single

KIND = "pretrain"


@dataclass(frozen=True)
class BarlowTwinsRecipe(JointRecipe):
    objective: BarlowTwinsConfig = field(default_factory=BarlowTwinsConfig)
    makes: ClassVar[Any] = BarlowTwins


@dataclass(frozen=True)
class VicregRecipe(JointRecipe):
    objective: VicregConfig = field(default_factory=VicregConfig)
    makes: ClassVar[Any] = Vicreg


def barlow_twins() -> BarlowTwinsRecipe:
    """Barlow Twins in small: heads of 512 instead of 8192, batch 64 instead of 2048, AdamW instead of LARS."""
    return BarlowTwinsRecipe(**small(), objective=BarlowTwinsConfig(dim=512))


def barlow_twins_tiny() -> BarlowTwinsRecipe:
    """`barlow_twins` in half a minute on two CPU cores."""
    return in_tiny(barlow_twins())


def barlow_twins_resnet50() -> BarlowTwinsRecipe:
    """The published ResNet-50 and its schedule: 1000 epochs of 1.28 M images, batch 2048, LARS 0.2 x batch / 256; 32 GPUs.

    Biases and norms learn at 0.0048 x batch / 256. For tiles of 224 px of 10 m. 73.5 % on ImageNet (linear) as published, a
    week on 16 V100. Deviations: augmentation as far as `published_stream` goes, the same for both views; norms begin at 1,
    also at the end of a residual; float32.
    """
    return BarlowTwinsRecipe(ResnetConfig(50), 40.0, _published(bias_rate_share=0.0048 / 0.2))


def barlow_twins_sensors() -> BarlowTwinsRecipe:
    """Barlow Twins whose twins are two sensors of a place."""
    return BarlowTwinsRecipe(**small(CrossSensor(), None), objective=BarlowTwinsConfig(views="sensors", dim=512))


def barlow_twins_sensors_tiny() -> BarlowTwinsRecipe:
    """`barlow_twins_sensors` in half a minute on two CPU cores."""
    return in_tiny(barlow_twins_sensors())


def vicreg() -> VicregRecipe:
    """VICReg in small: an expander of 512 instead of 8192, batch 64 instead of 2048, AdamW instead of LARS."""
    return VicregRecipe(**small(), objective=VicregConfig(dim=512))


def vicreg_tiny() -> VicregRecipe:
    """`vicreg` in half a minute on two CPU cores."""
    return in_tiny(vicreg())


def vicreg_resnet50() -> VicregRecipe:
    """The published ResNet-50 and its schedule: as `barlow_twins_resnet50`, with one rate for all; 73.2 % as published."""
    return VicregRecipe(ResnetConfig(50), 40.0, _published())


def vicreg_sensors() -> VicregRecipe:
    """VICReg whose branches are two sensors of a place."""
    return VicregRecipe(**small(CrossSensor(), None), objective=VicregConfig(views="sensors", dim=512))


def vicreg_sensors_tiny() -> VicregRecipe:
    """`vicreg_sensors` in half a minute on two CPU cores."""
    return in_tiny(vicreg_sensors())


def _published(**changes: float) -> TrainConfig:
    lars = {**LARS, "weight_decay": 1e-6, "final_rate_share": 1e-3, **changes}
    train = published(
        images=IMAGENET, epochs=1000, batch=2048, warmup_epochs=10, rate=0.2 * 2048 / 256, optimiser=lars, view=Single(),
        stream=published_stream(0.4, 0.08),
    )  # fmt: skip
    return whole_batch(train, 32)
