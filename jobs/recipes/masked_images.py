"""What the recipes of SimMIM and its kin share: a backbone that sees mask tokens, and blocks of ground that are hidden."""

from dataclasses import dataclass, field
from typing import Any

from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from jobs.recipes.schedules import published, tiny
from models.encoder import EncoderConfig
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig
from models.swin import SwinConfig
from models.vit import VitConfig
from pipeline.augment import AugmentConfig
from pipeline.stream import StreamConfig
from pipeline.views import Single, View

SWIN_BASE = SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=6)
"""Swin-B for images of 192 px: a grid of 6 x 6 cells at the end, one window."""
SWIN_SMALL = SwinConfig(embed_dim=48, depths=(2, 2, 4), num_heads=(2, 4, 8), window=4)
SWIN_TINY = SwinConfig(embed_dim=32, depths=(1, 2), num_heads=(2, 4), window=4)
GSD_M = 10.0
"""Pixel size that published shapes are given in: a patch of 4 px is a token of 40 m."""


@dataclass(frozen=True)
class MaskedImageRecipe:
    """A complete run; the sensors and their statistics come from the archive."""

    backbone: SwinConfig | VitConfig
    token_size_m: float
    """Ground size of one token, the same for every sensor."""
    mask_block_m: float
    mask_ratio: float = 0.6
    train: TrainConfig = field(default_factory=TrainConfig)

    def encoder(self, sensors: tuple[SensorSpec, ...]) -> EncoderConfig:
        """Return the backbone behind stems with a norm as Swin's, without one as a ViT's; a Swin is pooled from all stages."""
        is_swin = isinstance(self.backbone, SwinConfig)
        stem, pool = SensorStemConfig(has_norm=is_swin), "stages" if is_swin else "last"
        return EncoderConfig(self.backbone, self.token_size_m, sensors, pool, stem=stem)  # type: ignore[arg-type]


def two_cores(view: View | None = None) -> dict[str, Any]:
    """Return the shape that these recipes have for two CPU cores, on sites of 640 m: tokens of 40 m, blocks of 2 x 2."""
    optimiser = OptimiserConfig(learning_rate=1.5e-3, warmup_steps=60)
    train = TrainConfig(num_steps=600, view=view or Single(), optimiser=optimiser)
    return {"backbone": SWIN_SMALL, "token_size_m": 40.0, "mask_block_m": 80.0, "train": train}


def tiny_image(recipe: MaskedImageRecipe) -> dict[str, Any]:
    """Return what makes the same mathematics run in well under a minute on two CPU cores."""
    return {"backbone": SWIN_TINY, "train": tiny(recipe.train)}


def as_published(backbone: SwinConfig | VitConfig, *, least_area: float, **schedule: Any) -> dict[str, Any]:
    """Return a published shape, blocks of 32 px, and a schedule of `published` with gradients clipped at 5."""
    patch = 4 if isinstance(backbone, SwinConfig) else 16
    crops = StreamConfig(augment=AugmentConfig(crop_area=(least_area, 1.0)))
    settings = {"betas": (0.9, 0.999), "clip_norm": 5.0, **schedule.pop("optimiser", {})}
    train = published(**{"view": Single(), **schedule}, stream=crops, optimiser=settings)
    return {"backbone": backbone, "token_size_m": GSD_M * patch, "mask_block_m": GSD_M * 32, "train": train}
