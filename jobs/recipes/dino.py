"""DINO: self-distillation between crops of many sizes (Caron et al. 2021, arXiv 2104.14294)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from jobs.recipes.joint import JointRecipe, in_tiny, published_stream, small
from jobs.recipes.schedules import IMAGENET, published
from models.objectives.dino import Dino, DinoConfig
from models.vit import vit_size
from pipeline.crops import MultiCrop
from pipeline.views import Single

KIND = "pretrain"
SMALL_CROPS = MultiCrop(num_global=2, global_m=480.0, num_local=4, local_m=160.0)
CROPS = MultiCrop(num_global=2, global_m=2240.0, num_local=8, local_m=960.0, step_m=10.0)


@dataclass(frozen=True)
class DinoRecipe(JointRecipe):
    objective: DinoConfig = field(default_factory=DinoConfig)
    makes: ClassVar[Any] = Dino


def dino() -> DinoRecipe:
    """DINO in small: 2 crops of 480 m and 4 of 160 m, 1024 prototypes instead of 65 536, heads of 256, momentum from 0.99."""
    return DinoRecipe(**small(Single(), SMALL_CROPS), objective=DinoConfig(256, 64, 1024, momentum=0.99))


def dino_tiny() -> DinoRecipe:
    """`dino` in half a minute on two CPU cores."""
    return in_tiny(dino())


def dino_small() -> DinoRecipe:
    """The published ViT-S/16 and its schedule, 800 epochs: 77.0 % on ImageNet (linear) as published; see `dino_base`."""
    return _published("small", 800)


def dino_base() -> DinoRecipe:
    """The published ViT-B/16: 400 epochs of 1.28 M images, batch 1024, AdamW 5e-4 x batch / 256; 78.2 % (linear).

    For tiles of 256 px of 10 m (`--site-size-m 2560`), of which crops are 224 and 96 px. Weight decay rises from 0.04 to 0.4,
    prototypes keep still for the first epoch. Deviations: crops are cut, not resized from 40 to 100 % and 5 to 40 % of the
    image; augmentation as far as `published_stream` goes; the whole gradient is clipped at 3, not each parameter's; the
    teacher's temperature does not warm up.
    """
    return _published("base", 400)


def _published(size: str, epochs: int) -> DinoRecipe:
    optimiser = {"weight_decay": 0.04, "final_weight_decay": 0.4, "betas": (0.9, 0.999), "clip_norm": 3.0, "final_rate_share": 5e-4}
    train = published(
        images=IMAGENET, epochs=epochs, batch=1024, warmup_epochs=10, rate=5e-4 * 1024 / 256, optimiser=optimiser, view=Single(),
        stream=published_stream(0.4, 1.0, CROPS),
    )  # fmt: skip
    objective = DinoConfig(frozen_steps=IMAGENET // 1024)
    return DinoRecipe(vit_size(size, drop_path=0.1), 160.0, train, "class", objective)
