"""MoCo: contrastive learning with a moving average, v2 with a queue and v3 within the batch."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from jobs.recipes.joint import SGD, JointRecipe, in_tiny, published_stream, small
from jobs.recipes.schedules import IMAGENET, published, whole_batch
from models.objectives.moco import Moco, MocoConfig, MocoV3, MocoV3Config
from models.resnet import ResnetConfig
from models.vit import vit_size
from pipeline.views import SeasonPair, Single, TemporalPair

KIND = "pretrain"
FMOW_RGB = 363_571
"""Training images of Functional Map of the World (arXiv 1711.07846)."""


@dataclass(frozen=True)
class MocoRecipe(JointRecipe):
    objective: MocoConfig = field(default_factory=MocoConfig)
    makes: ClassVar[Any] = Moco


@dataclass(frozen=True)
class MocoV3Recipe(JointRecipe):
    objective: MocoV3Config = field(default_factory=MocoV3Config)
    makes: ClassVar[Any] = MocoV3


def moco() -> MocoRecipe:
    """MoCo v2 (arXiv 2003.04297) in small: a queue of 2048 keys instead of 65 536, momentum 0.99, a head of 256, AdamW."""
    return MocoRecipe(**small(), objective=MocoConfig(queue_size=2048, hidden=256, dim=64, momentum=0.99))


def moco_tiny() -> MocoRecipe:
    """`moco` in half a minute on two CPU cores."""
    return in_tiny(moco())


def moco_resnet50() -> MocoRecipe:
    """MoCo v2 with the published ResNet-50 and schedule: 200 epochs of 1.28 M images, batch 256, SGD 0.03, cosine; 8 GPUs.

    For tiles of 224 px of 10 m. 67.5 % on ImageNet (linear) as published, 53 h on 8 V100. Deviations: augmentation as far as
    `published_stream` goes; batch norm over the whole batch instead of shuffling samples between GPUs; biases and norms do
    not decay.
    """
    stream = published_stream(0.4, 0.2)
    train = published(
        images=IMAGENET, epochs=200, batch=256, warmup_epochs=0, rate=0.03, optimiser=SGD, view=Single(), stream=stream
    )
    return MocoRecipe(ResnetConfig(50), 40.0, whole_batch(train, 8))


def temporal_moco() -> MocoRecipe:
    """MoCo with temporal positives (Ayush et al. 2021, arXiv 2011.09980), without its classes of places."""
    objective = MocoConfig(views="dates", queue_size=2048, hidden=256, dim=64, momentum=0.99)
    return MocoRecipe(**small(SeasonPair(min_gap_days=30.0), None), objective=objective)


def temporal_moco_tiny() -> MocoRecipe:
    """`temporal_moco` in half a minute on two CPU cores."""
    return in_tiny(temporal_moco())


def temporal_moco_resnet50() -> MocoRecipe:
    """MoCo with temporal positives, ResNet-50: 200 epochs of fMoW's 364 k images, batch 256, SGD 0.03, temperature 0.02.

    68.3 % on fMoW-RGB with a frozen encoder as published, with classes of places besides, which are not here. Any two dates
    of a place are a pair. Other deviations as of `moco_resnet50`.
    """
    train = published(
        images=FMOW_RGB, epochs=200, batch=256, warmup_epochs=0, rate=0.03, optimiser=SGD, view=TemporalPair(0.0),
        stream=published_stream(0.4, 0.2),
    )  # fmt: skip
    objective = MocoConfig(views="dates", temperature=0.02)
    return MocoRecipe(ResnetConfig(50), 40.0, whole_batch(train, 8), objective=objective)


def moco_v3() -> MocoV3Recipe:
    """MoCo v3 (arXiv 2104.02057) in small: batch 64 instead of 4096, heads of 256; the patch embedding is trained."""
    return MocoV3Recipe(**small(), objective=MocoV3Config(hidden=256, dim=64))


def moco_v3_tiny() -> MocoV3Recipe:
    """`moco_v3` in half a minute on two CPU cores."""
    return in_tiny(moco_v3())


def moco_v3_small() -> MocoV3Recipe:
    """The published ViT-S (12 heads) and its schedule: 73.2 % on ImageNet (linear) as published; see `moco_v3_base`."""
    return _published_v3("small", num_heads=12)


def moco_v3_base() -> MocoV3Recipe:
    """The published ViT-B and its schedule: 300 epochs of 1.28 M images, batch 4096, AdamW 1.5e-4 x batch / 256; 32 GPUs.

    For tiles of 224 px of 10 m, tokens of 16 px, the patch embedding frozen at its first values. 76.7 % on ImageNet (linear)
    as published. Deviations: augmentation as far as `published_stream` goes; first values of the patch embedding are normal.
    """
    return _published_v3("base")


def _published_v3(size: str, **shape: int) -> MocoV3Recipe:
    rate, adamw = 1.5e-4 * 4096 / 256, {"weight_decay": 0.1, "betas": (0.9, 0.999), "clip_norm": 0.0}
    train = published(
        images=IMAGENET, epochs=300, batch=4096, warmup_epochs=40, rate=rate, optimiser=adamw, view=Single(),
        stream=published_stream(0.4, 0.08),
    )  # fmt: skip
    objective = MocoV3Config(has_frozen_stem=True)
    return MocoV3Recipe(vit_size(size, **shape), 160.0, whole_batch(train, 32), "class", objective)
