"""Contrastive learning, self-distillation and redundancy reduction: two views of a place, in small.

All share one backbone, so that they can be compared. Two crops of one tile are the views, with what `augment` does to
light and speckle; where a name says so, two dates or two sensors are.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from cluster.engine import OptimiserConfig
from cluster.training import TrainConfig
from models.encoder import EncoderConfig
from models.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from models.objectives.byol import Byol, ByolConfig
from models.objectives.dino import Dino, DinoConfig
from models.objectives.moco import Moco, MocoConfig, MocoV3, MocoV3Config
from models.objectives.simclr import Simclr, SimclrConfig
from models.objectives.vicreg import Vicreg, VicregConfig
from models.sensor import SensorSpec
from models.vit import VitConfig
from pipeline.augment import AugmentConfig
from pipeline.crops import MultiCrop
from pipeline.stream import StreamConfig
from pipeline.views import CrossSensor, SeasonPair, Single, View

KIND = "pretrain"
AUGMENT = AugmentConfig(brightness=0.4, contrast=0.4, speckle_looks=10.0)
TWO_CROPS = MultiCrop(num_global=2, global_m=480.0, num_local=0)
MULTI_CROP = MultiCrop(num_global=2, global_m=480.0, num_local=4, local_m=160.0)


@dataclass(frozen=True)
class JointRecipe:
    """A complete run of one joint-embedding objective; the sensors and their statistics come from the archive."""

    backbone: VitConfig
    token_size_m: float
    train: TrainConfig

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> nn.Module:
        kind: Any = OBJECTIVES[type(self)]
        return kind(EncoderConfig(self.backbone, self.token_size_m, sensors, hidden="absent"), self.objective, generator)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class SimclrRecipe(JointRecipe):
    objective: SimclrConfig = field(default_factory=SimclrConfig)


@dataclass(frozen=True)
class MocoRecipe(JointRecipe):
    objective: MocoConfig = field(default_factory=MocoConfig)


@dataclass(frozen=True)
class MocoV3Recipe(JointRecipe):
    objective: MocoV3Config = field(default_factory=MocoV3Config)


@dataclass(frozen=True)
class ByolRecipe(JointRecipe):
    objective: ByolConfig = field(default_factory=ByolConfig)


@dataclass(frozen=True)
class DinoRecipe(JointRecipe):
    objective: DinoConfig = field(default_factory=DinoConfig)


@dataclass(frozen=True)
class BarlowTwinsRecipe(JointRecipe):
    objective: BarlowTwinsConfig = field(default_factory=BarlowTwinsConfig)


@dataclass(frozen=True)
class VicregRecipe(JointRecipe):
    objective: VicregConfig = field(default_factory=VicregConfig)


OBJECTIVES = {
    SimclrRecipe: Simclr,
    MocoRecipe: Moco,
    MocoV3Recipe: MocoV3,
    ByolRecipe: Byol,
    DinoRecipe: Dino,
    BarlowTwinsRecipe: BarlowTwins,
    VicregRecipe: Vicreg,
}


def simclr() -> SimclrRecipe:
    """SimCLR (arXiv 2002.05709) in small: batch 64 instead of 4096, AdamW instead of LARS, temperature 0.2, a head of 256."""
    return SimclrRecipe(**_shape(), objective=SimclrConfig(hidden=256, dim=64, temperature=0.2))


def temporal_simclr() -> SimclrRecipe:
    """SimCLR whose views are two seasons of a place, instead of two crops."""
    shape = _shape(SeasonPair(min_gap_days=30.0), None)
    return SimclrRecipe(**shape, objective=SimclrConfig(views="dates", hidden=256, dim=64, temperature=0.2))


def moco() -> MocoRecipe:
    """MoCo v2 (arXiv 2003.04297) in small: a queue of 2048 keys instead of 65 536, momentum 0.99, a head of 256."""
    return MocoRecipe(**_shape(), objective=MocoConfig(queue_size=2048, hidden=256, dim=64, momentum=0.99))


def temporal_moco() -> MocoRecipe:
    """MoCo with temporal positives (Ayush et al. 2021, arXiv 2011.09980), without its classes of places."""
    shape = _shape(SeasonPair(min_gap_days=30.0), None)
    return MocoRecipe(**shape, objective=MocoConfig(views="dates", queue_size=2048, hidden=256, dim=64, momentum=0.99))


def moco_v3() -> MocoV3Recipe:
    """MoCo v3 (arXiv 2104.02057) in small: batch 64 instead of 4096, heads of 256."""
    return MocoV3Recipe(**_shape(), objective=MocoV3Config(hidden=256, dim=64))


def byol() -> ByolRecipe:
    """BYOL (arXiv 2006.07733) in small: batch 64 instead of 4096, heads of 256, momentum from 0.97 as for 40 epochs."""
    return ByolRecipe(**_shape(), objective=ByolConfig(hidden=256, dim=64, momentum=0.97))


def rs_byol() -> ByolRecipe:
    """RS-BYOL (arXiv 2205.02049) in small: optical and radar of a place are the views.

    Deviation: each sensor keeps all its bands and a stem of its own, where the paper feeds one or three bands of either into
    one network.
    """
    return ByolRecipe(**_shape(CrossSensor(), None), objective=ByolConfig(views="sensors", hidden=256, dim=64, momentum=0.97))


def dino() -> DinoRecipe:
    """DINO (arXiv 2104.14294) in small: 2 crops of 480 m and 4 of 160 m, 1024 prototypes instead of 65 536, heads of 256."""
    return DinoRecipe(**_shape(Single(), MULTI_CROP), objective=DinoConfig(256, 64, 1024, momentum=0.99))


def barlow_twins() -> BarlowTwinsRecipe:
    """Barlow Twins (arXiv 2103.03230) in small: heads of 512 instead of 8192, batch 64 instead of 2048."""
    return BarlowTwinsRecipe(**_shape(), objective=BarlowTwinsConfig(dim=512))


def barlow_twins_sensors() -> BarlowTwinsRecipe:
    """Barlow Twins whose twins are two sensors of a place."""
    return BarlowTwinsRecipe(**_shape(CrossSensor(), None), objective=BarlowTwinsConfig(views="sensors", dim=512))


def vicreg() -> VicregRecipe:
    """VICReg (arXiv 2105.04906) in small: an expander of 512 instead of 8192, batch 64 instead of 2048."""
    return VicregRecipe(**_shape(), objective=VicregConfig(dim=512))


def vicreg_sensors() -> VicregRecipe:
    """VICReg whose branches are two sensors of a place."""
    return VicregRecipe(**_shape(CrossSensor(), None), objective=VicregConfig(views="sensors", dim=512))


def _shape(view: View = Single(), crops: MultiCrop | None = TWO_CROPS) -> dict[str, Any]:  # noqa: B008
    """Return what all recipes here share."""
    train = TrainConfig(
        num_steps=600,
        view=view,
        stream=StreamConfig(augment=AUGMENT, crops=crops),
        optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=60),
    )
    return {"backbone": VitConfig(embed_dim=128, depth=6, num_heads=4), "token_size_m": 40.0, "train": train}


def _tiny(recipe: Any) -> Any:
    """Return the same mathematics in about a minute on two CPU cores."""
    train = replace(recipe.train, num_steps=60, batch_size=16, checkpoint_every=20, optimiser=OptimiserConfig(warmup_steps=10))
    return replace(recipe, backbone=VitConfig(embed_dim=48, depth=2, num_heads=2), train=train)


def simclr_tiny() -> SimclrRecipe:
    """`simclr` in about a minute on two CPU cores, for tests and first tries."""
    return _tiny(simclr())


def temporal_simclr_tiny() -> SimclrRecipe:
    """`temporal_simclr` in about a minute on two CPU cores."""
    return _tiny(temporal_simclr())


def moco_tiny() -> MocoRecipe:
    """`moco` in about a minute on two CPU cores."""
    return _tiny(moco())


def temporal_moco_tiny() -> MocoRecipe:
    """`temporal_moco` in about a minute on two CPU cores."""
    return _tiny(temporal_moco())


def moco_v3_tiny() -> MocoV3Recipe:
    """`moco_v3` in about a minute on two CPU cores."""
    return _tiny(moco_v3())


def byol_tiny() -> ByolRecipe:
    """`byol` in about a minute on two CPU cores."""
    return _tiny(byol())


def rs_byol_tiny() -> ByolRecipe:
    """`rs_byol` in about a minute on two CPU cores."""
    return _tiny(rs_byol())


def dino_tiny() -> DinoRecipe:
    """`dino` in about a minute on two CPU cores."""
    return _tiny(dino())


def barlow_twins_tiny() -> BarlowTwinsRecipe:
    """`barlow_twins` in about a minute on two CPU cores."""
    return _tiny(barlow_twins())


def barlow_twins_sensors_tiny() -> BarlowTwinsRecipe:
    """`barlow_twins_sensors` in about a minute on two CPU cores."""
    return _tiny(barlow_twins_sensors())


def vicreg_tiny() -> VicregRecipe:
    """`vicreg` in about a minute on two CPU cores."""
    return _tiny(vicreg())


def vicreg_sensors_tiny() -> VicregRecipe:
    """`vicreg_sensors` in about a minute on two CPU cores."""
    return _tiny(vicreg_sensors())
