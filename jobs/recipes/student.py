"""Students: small dense encoders taught by a pretrained one.

One sensor's students (`student_radar`, `student_optical`, `student_aerial`) are taught what the teacher sees of all sensors of the
same site named in `taught_by`; the others what it sees of the same tile.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.objectives.distillation import Distillation, DistillationConfig
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.vit import VitConfig

KIND = "distill"
Size = Literal["swin", "swin_light", "swin_tiny", "vit", "vit_tiny", "resnet", "resnet_tiny"]
BACKBONES: dict[str, SwinConfig | VitConfig | ResnetConfig] = {
    "swin": SwinConfig(embed_dim=36, depths=(2, 2, 2), num_heads=(1, 2, 4), window=4),
    "swin_light": SwinConfig(embed_dim=16, depths=(1, 1, 2), num_heads=(1, 2, 4), window=4),
    "swin_tiny": SwinConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window=4),
    "vit": VitConfig(embed_dim=96, depth=4, num_heads=3),
    "vit_tiny": VitConfig(embed_dim=32, depth=2, num_heads=2),
    "resnet": ResnetConfig(18, embed_dim=24),
    "resnet_tiny": ResnetConfig(18, embed_dim=4),
}


@dataclass(frozen=True)
class StudentRecipe:
    """A complete distillation; statistics and token size are the teacher's."""

    backbone: SwinConfig
    grid_weight: float = 1.0
    """Weight of the token term."""
    pooled_weight: float = 1.0
    """Of the means over tiles."""
    relation_weight: float = 0.0
    """Of the cosines between all samples of the global batch."""
    prototype_weight: float = 0.0
    """Of soft choices among prototypes, as in DINO."""
    num_prototypes: int = 256
    sensors: tuple[str, ...] = ()
    """Sensors of the student; none: all that the archive and the teacher share."""
    taught_by: tuple[str, ...] = ()
    """Sensors that the teacher sees while the student sees one of its own; none: the same one."""
    students: tuple[Size, ...] = ()
    """Further students from the same passes of the teacher, each in RUN/models, by name."""
    precomputed: bool = False
    """Read what the teacher makes of each tile from the archive, where 'terraloom embed --into-archive True' put it."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def build(self, sensors: tuple[SensorSpec, ...], teacher: Encoder, generator: torch.Generator) -> Distillation:
        known = {sensor.name: teacher.spec(sensor.name) for sensor in sensors if not self.sensors or sensor.name in self.sensors}
        if missing := [name for name in self.sensors if name not in known]:
            raise InputError(f"student is to see {missing[0]}, the archive has {', '.join(sensor.name for sensor in sensors)}")
        if len(set(self.students)) < len(self.students) or "first" in self.students:
            raise InputError(f"students are {', '.join(self.students)}, expected no name twice")
        token_size_m, pool = teacher.config.token_size_m, teacher.config.pool
        seen = tuple(known.values())
        others = tuple((name, EncoderConfig(BACKBONES[name], token_size_m, seen, pool)) for name in self.students)
        config = DistillationConfig(
            EncoderConfig(self.backbone, token_size_m, seen, pool),
            self.grid_weight,
            pooled_weight=self.pooled_weight,
            relation_weight=self.relation_weight,
            prototype_weight=self.prototype_weight,
            num_prototypes=self.num_prototypes,
            taught_by=self.taught_by,
            others=others,
        )
        return Distillation(config, teacher, generator)


def student() -> StudentRecipe:
    """A dense Swin of 0.75 M parameters: `terraloom distill student TEACHER_RUN ARCHIVE RUN`, about three minutes on two CPU cores.

    Eight and a half times smaller than the `msgfm` recipe's encoder.
    """
    return StudentRecipe(
        backbone=_swin("swin"),
        train=TrainConfig(num_steps=500, optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=30)),
    )


def student_tiny() -> StudentRecipe:
    """The same in seconds, for tests and first tries."""
    return _tiny(student())


def student_light() -> StudentRecipe:
    """A Swin of 0.14 M parameters with less than a tenth of the `msgfm` encoder's operations, taught relations besides.

    Of one sensor it keeps its teacher's score in 500 steps (`student_radar --students swin_light`); of four it needs more.
    """
    return replace(student(), backbone=_swin("swin_light"), relation_weight=1.0)


def student_light_tiny() -> StudentRecipe:
    """The same in seconds, for tests and first tries."""
    return _tiny(student_light())


def student_radar() -> StudentRecipe:
    """A student that sees Sentinel-1 and learns what its teacher makes of Sentinel-1 and Sentinel-2 together."""
    return _of_one(student(), "sentinel1_grd", "sentinel2_l2a")


def student_radar_tiny() -> StudentRecipe:
    """The same in seconds, for tests and first tries."""
    return _tiny(student_radar())


def student_optical() -> StudentRecipe:
    """A student that sees Sentinel-2 and learns what its teacher makes of Sentinel-1 and Sentinel-2 together."""
    return _of_one(student(), "sentinel2_l2a", "sentinel1_grd")


def student_optical_tiny() -> StudentRecipe:
    """The same in seconds, for tests and first tries."""
    return _tiny(student_optical())


def student_aerial() -> StudentRecipe:
    """A student that sees aerial RGB and learns what its teacher makes of it and Sentinel-2 together."""
    return _of_one(student(), "rgb_aerial", "sentinel2_l2a")


def student_aerial_tiny() -> StudentRecipe:
    """The same in seconds, for tests and first tries."""
    return _tiny(student_aerial())


def _of_one(recipe: StudentRecipe, own: str, other: str) -> StudentRecipe:
    return replace(recipe, sensors=(own,), taught_by=(own, other))


def _tiny(recipe: StudentRecipe) -> StudentRecipe:
    train = replace(recipe.train, num_steps=20, batch_size=8, checkpoint_every=10)
    return replace(recipe, backbone=_swin("swin_tiny"), train=train)


def _swin(name: str) -> SwinConfig:
    found = BACKBONES[name]
    assert isinstance(found, SwinConfig)
    return found
