"""What recipes of joint embeddings share: backbones and their stems, the sizes to compare them in, published augmentations."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from jobs.recipes.masked_images import SWIN_TINY
from jobs.recipes.schedules import tiny
from models.encoder import EncoderConfig
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.stems.resnet import ResnetStemConfig
from models.stems.sensor import SensorStemConfig
from models.swin import SwinConfig
from models.vit import VitConfig
from pipeline.augment import AugmentConfig
from pipeline.crops import MultiCrop
from pipeline.stream import StreamConfig
from pipeline.views import Single, View

TWO_CROPS = MultiCrop(num_global=2, global_m=480.0, num_local=0)
TWO_OF_224_PX = MultiCrop(num_global=2, global_m=2240.0, num_local=0)
"""Both views are of the whole tile of 224 px of 10 m (`--site-size-m 2240`), of which augmentation takes and resizes a part."""
LARS = {"algorithm": "lars", "zero_stage": 0, "bf16": False, "clip_norm": 0.0}
SGD = {"algorithm": "sgd", "weight_decay": 1e-4, "clip_norm": 0.0}


@dataclass(frozen=True)
class JointRecipe:
    """A complete run of one objective; the sensors and their statistics come from the archive.

    Subclasses add `objective`, its settings, and `makes`, its class.
    """

    backbone: VitConfig | SwinConfig | ResnetConfig
    token_size_m: float
    train: TrainConfig
    pool: Literal["last", "class", "moments"] = "last"
    """What is compared: the mean of the last map; a vit's class token, then without a norm after the patch projection; or means
    and deviations of all stages' maps.
    """
    makes: ClassVar[Any]

    def encoder(self, sensors: tuple[SensorSpec, ...]) -> EncoderConfig:
        shape = (self.backbone, self.token_size_m, sensors, self.pool)
        if isinstance(self.backbone, ResnetConfig):
            return EncoderConfig(*shape, stem=ResnetStemConfig())
        if isinstance(self.backbone, SwinConfig):
            return EncoderConfig(*shape)
        return EncoderConfig(*shape, hidden="absent", stem=SensorStemConfig(has_norm=self.pool != "class"))

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> nn.Module:
        return self.makes(self.encoder(sensors), self.objective, generator)  # type: ignore[attr-defined]


def small(view: View = Single(), crops: MultiCrop | None = TWO_CROPS) -> dict[str, Any]:  # noqa: B008
    """Return what all small recipes share: five minutes on two CPU cores."""
    train = TrainConfig(
        num_steps=600,
        view=view,
        stream=StreamConfig(augment=AugmentConfig(brightness=0.4, contrast=0.4, speckle_looks=10.0), crops=crops),
        optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=60),
    )
    return {"backbone": VitConfig(embed_dim=128, depth=6, num_heads=4), "token_size_m": 40.0, "train": train}


def in_tiny(recipe: Any) -> Any:
    """Return the same mathematics in half a minute on two CPU cores."""
    backbone = SWIN_TINY if isinstance(recipe.backbone, SwinConfig) else VitConfig(embed_dim=48, depth=2, num_heads=2)
    return replace(recipe, backbone=backbone, train=tiny(recipe.train))


def published_stream(light: float, least: float, crops: MultiCrop | None = TWO_OF_224_PX) -> StreamConfig:
    """Return the part of the published augmentation that has a meaning for every sensor.

    Crops of `least` to all of the ground, resized; brightness and contrast by up to `light`; all symmetries of the square, not
    mirror images only; for radar speckle of ten looks. Not there: aspect ratios, hue and saturation, grey, blur, solarising.
    """
    augment = AugmentConfig(brightness=light, contrast=light, speckle_looks=10.0, crop_area=(least, 1.0))
    return StreamConfig(augment=augment, crops=crops)
