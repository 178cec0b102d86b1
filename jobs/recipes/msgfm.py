"""msGFM: cross-sensor masked image modelling with a mixture of experts (Han et al., CVPR 2024, arXiv 2404.01260)."""

from dataclasses import dataclass, field, replace

import torch

from cluster.engine import OptimiserConfig
from cluster.training import TrainConfig
from models.encoder import EncoderConfig
from models.moe import MoEConfig
from models.objectives.msgfm import Msgfm, MsgfmConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig

KIND = "pretrain"


@dataclass(frozen=True)
class MsgfmRecipe:
    """A complete msGFM run; the sensors and their statistics come from the archive."""

    backbone: SwinConfig
    token_size_m: float
    """Ground size of one token, the same for every sensor."""
    mask_block_m: float
    mask_ratio: float = 0.6
    cross_sensor_probability: float = 0.5
    balance_weight: float = 0.01
    train: TrainConfig = field(default_factory=TrainConfig)

    def build(self, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> Msgfm:
        encoder = EncoderConfig(self.backbone, self.token_size_m, sensors, pool="stages")
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
    return MsgfmRecipe(
        backbone=SwinConfig(embed_dim=48, depths=(2, 2, 4), num_heads=(2, 4, 8), window=4, moe=MoEConfig(), moe_stages=(2,)),
        token_size_m=40.0,
        mask_block_m=80.0,
        train=TrainConfig(num_steps=600, optimiser=OptimiserConfig(learning_rate=1.5e-3, warmup_steps=60)),
    )


def msgfm_tiny() -> MsgfmRecipe:
    """The same mathematics in about a minute on two CPU cores, for tests and first tries."""
    recipe = msgfm()
    backbone = SwinConfig(embed_dim=32, depths=(1, 2), num_heads=(2, 4), window=4, moe=MoEConfig(num_experts=4), moe_stages=(1,))
    train = replace(recipe.train, num_steps=60, batch_size=8, checkpoint_every=20)
    return replace(recipe, backbone=backbone, train=replace(train, optimiser=OptimiserConfig(warmup_steps=10)))
