"""BYOL: predicting one's own moving average, without negatives (Grill et al. 2020, arXiv 2006.07733)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from jobs.recipes.joint import LARS, JointRecipe, in_tiny, published_stream, small
from jobs.recipes.schedules import IMAGENET, published, whole_batch
from models.objectives.byol import Byol, ByolConfig
from models.resnet import ResnetConfig
from pipeline.views import CrossSensor, Single

KIND = "pretrain"


@dataclass(frozen=True)
class ByolRecipe(JointRecipe):
    objective: ByolConfig = field(default_factory=ByolConfig)
    makes: ClassVar[Any] = Byol


def byol() -> ByolRecipe:
    """BYOL in small: batch 64 instead of 4096, AdamW instead of LARS, heads of 256, momentum from 0.97 as for 40 epochs."""
    return ByolRecipe(**small(), objective=ByolConfig(hidden=256, dim=64, momentum=0.97))


def byol_tiny() -> ByolRecipe:
    """`byol` in half a minute on two CPU cores."""
    return in_tiny(byol())


def byol_resnet50() -> ByolRecipe:
    """The published ResNet-50 and its schedule: 1000 epochs of 1.28 M images, batch 4096, LARS 0.2 x batch / 256; 32 GPUs.

    For tiles of 224 px of 10 m. 74.3 % on ImageNet (linear) as published. Deviations: augmentation as far as
    `published_stream` goes, the same for both views (published: blur and solarising differ); LARS as in `simclr_resnet50`.
    """
    rate, lars = 0.2 * 4096 / 256, {**LARS, "weight_decay": 1.5e-6}
    train = published(
        images=IMAGENET, epochs=1000, batch=4096, warmup_epochs=10, rate=rate, optimiser=lars, view=Single(),
        stream=published_stream(0.4, 0.08),
    )  # fmt: skip
    return ByolRecipe(ResnetConfig(50), 40.0, whole_batch(train, 32))


def byol_sensors() -> ByolRecipe:
    """BYOL between two sensors of a place, each with all its bands and a stem of its own: `rs_byol` without its shared stem."""
    return ByolRecipe(**small(CrossSensor(), None), objective=ByolConfig(views="sensors", hidden=256, dim=64, momentum=0.97))


def byol_sensors_tiny() -> ByolRecipe:
    """`byol_sensors` in half a minute on two CPU cores."""
    return in_tiny(byol_sensors())
