"""Students: small dense encoders taught by a pretrained one."""

from dataclasses import dataclass, field, replace

import torch

from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from models.encoder import Encoder, EncoderConfig
from models.objectives.distillation import Distillation, DistillationConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig

KIND = "distill"


@dataclass(frozen=True)
class StudentRecipe:
    """A complete distillation; sensors, statistics and token size are the teacher's."""

    backbone: SwinConfig
    grid_weight: float = 1.0
    """Weight of the token term beside the pooled one."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def build(self, sensors: tuple[SensorSpec, ...], teacher: Encoder, generator: torch.Generator) -> Distillation:
        taught = tuple(teacher.spec(sensor.name) for sensor in sensors)
        encoder = EncoderConfig(self.backbone, teacher.config.token_size_m, taught, teacher.config.pool)
        return Distillation(DistillationConfig(encoder, self.grid_weight), teacher, generator)


def student() -> StudentRecipe:
    """A dense Swin of 0.75 M parameters: `terraloom distill student TEACHER_RUN ARCHIVE RUN`, about three minutes on two CPU cores.

    Eight and a half times smaller than the `msgfm` recipe's encoder.
    """
    return StudentRecipe(
        backbone=SwinConfig(embed_dim=36, depths=(2, 2, 2), num_heads=(1, 2, 4), window=4),
        train=TrainConfig(num_steps=500, optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=30)),
    )


def student_tiny() -> StudentRecipe:
    """The same in seconds, for tests and first tries."""
    recipe = student()
    train = replace(recipe.train, num_steps=20, batch_size=8, checkpoint_every=10)
    return replace(recipe, backbone=SwinConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window=4), train=train)
