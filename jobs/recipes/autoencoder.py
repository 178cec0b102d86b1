"""What the recipes of masked autoencoders share: a transformer, a decoder, a share that is hidden."""

from dataclasses import dataclass, field, replace
from typing import Any

from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from jobs.recipes.schedules import tiny
from models.vit import VitConfig
from pipeline.views import Single, View


@dataclass(frozen=True)
class AutoencoderRecipe:
    """A complete run; the sensors and their statistics come from the archive."""

    backbone: VitConfig
    token_size_m: float
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    normalise_patches: bool = True
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def decoder(self) -> VitConfig:
        return VitConfig(self.decoder_width, self.decoder_depth, self.decoder_heads, has_class_token=False)


def two_cores(view: View | None = None, **changes: Any) -> dict[str, Any]:
    """Return the shape that recipes have for two CPU cores, on sites of 640 m: what is compared is compared at one size."""
    return {
        "backbone": VitConfig(embed_dim=128, depth=6, num_heads=4),
        "token_size_m": 40.0,
        "decoder_width": 96,
        "decoder_depth": 2,
        "decoder_heads": 4,
        "train": TrainConfig(num_steps=600, view=view or Single(), optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=60)),
        **changes,
    }


def tiny_autoencoder(recipe: Any, learning_rate: float = 5e-3, **changes: Any) -> Any:
    """Return the same mathematics in about a minute on two CPU cores.

    Twice the steps and five times the rate of other tiny recipes: with theirs the loss of scaled patches hardly moved.
    """
    train = tiny(recipe.train, num_steps=120)
    train = replace(train, optimiser=replace(train.optimiser, learning_rate=learning_rate))
    shape = {"backbone": VitConfig(embed_dim=48, depth=2, num_heads=2), "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    return replace(recipe, **{**shape, "train": train, **changes})
