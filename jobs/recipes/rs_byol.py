"""RS-BYOL: optical and radar predict each other through one network (Jain et al. 2022, arXiv 2205.02049)."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jobs.recipes.joint import LARS, JointRecipe, in_tiny, published_stream, small
from jobs.recipes.schedules import published, whole_batch
from models.encoder import EncoderConfig
from models.objectives.rs_byol import RsByol, RsByolConfig
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.stems.shared import SharedStemConfig
from pipeline.views import CrossSensor

KIND = "pretrain"
SEN12MS = 180_662
"""Pairs of Sentinel-1 and 2 tiles (arXiv 1906.07789)."""


@dataclass(frozen=True)
class RsByolRecipe(JointRecipe):
    num_channels: int = 1
    """Bands of a view: 1 or 3."""
    objective: RsByolConfig = field(default_factory=RsByolConfig)
    makes: ClassVar[Any] = RsByol

    def encoder(self, sensors: tuple[SensorSpec, ...]) -> EncoderConfig:
        encoder = super().encoder(sensors)
        return replace(encoder, stem=SharedStemConfig(num_channels=self.num_channels, each=encoder.stem))


def rs_byol() -> RsByolRecipe:
    """RS-BYOL in small, views of one band: every pair of sensors in place of Sentinel-1 and 2 only; else as `byol`.

    The embedding of a sensor is that of its red band, or its first: one band is what the network takes.
    """
    return RsByolRecipe(**small(CrossSensor(), None), objective=RsByolConfig(hidden=256, dim=64, momentum=0.97))


def rs_byol_tiny() -> RsByolRecipe:
    """`rs_byol` in half a minute on two CPU cores."""
    return in_tiny(rs_byol())


def rs_byol_three() -> RsByolRecipe:
    """`rs_byol` with views of three bands; the embedding is that of red, green and blue, or of what bands there are."""
    return replace(rs_byol(), num_channels=3)


def rs_byol_three_tiny() -> RsByolRecipe:
    """`rs_byol_three` in half a minute on two CPU cores."""
    return in_tiny(rs_byol_three())


def rs_byol_resnet50() -> RsByolRecipe:
    """Views of one band, ResNet-50, 100 epochs of SEN12MS (181 k pairs of 256 px of 10 m: `--site-size-m 2560`); 8 GPUs.

    EuroSAT F1 of about 0.92 (linear) and 59.6 mIoU on DFC2020 as published. What is not public is BYOL's for 100 epochs,
    with a batch of 1024: LARS 0.45 x batch / 256, momentum from 0.99. Both views are of the same ground: sensors differ,
    geometry does not.
    """
    rate, lars = 0.45 * 1024 / 256, {**LARS, "weight_decay": 1e-6}
    train = published(
        images=SEN12MS, epochs=100, batch=1024, warmup_epochs=10, rate=rate, optimiser=lars, view=CrossSensor(),
        stream=published_stream(0.4, 0.08, None), sensor_sets=(("sentinel1_grd", "sentinel2_l2a"),),
    )  # fmt: skip
    return RsByolRecipe(ResnetConfig(50), 40.0, whole_batch(train, 8), objective=RsByolConfig(momentum=0.99))


def rs_byol_three_resnet50() -> RsByolRecipe:
    """`rs_byol_resnet50` with views of three bands."""
    return replace(rs_byol_resnet50(), num_channels=3)
