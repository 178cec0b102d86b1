"""SimCLR: contrastive learning within the batch (Chen et al. 2020, arXiv 2002.05709), with crops or dates as the views."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jobs.recipes.joint import LARS, JointRecipe, in_tiny, published_stream, small
from jobs.recipes.masked_images import SWIN_SMALL
from jobs.recipes.schedules import IMAGENET, published, whole_batch
from models.objectives.simclr import Simclr, SimclrConfig
from models.resnet import ResnetConfig
from pipeline.crops import MultiCrop
from pipeline.views import SeasonPair, Single, View

KIND = "pretrain"


@dataclass(frozen=True)
class SimclrRecipe(JointRecipe):
    objective: SimclrConfig = field(default_factory=SimclrConfig)
    makes: ClassVar[Any] = Simclr


def simclr() -> SimclrRecipe:
    """SimCLR in small: batch 64 instead of 4096, AdamW instead of LARS, temperature 0.2, a head of 256, a transformer."""
    return SimclrRecipe(**small(), objective=SimclrConfig(hidden=256, dim=64, temperature=0.2))


def simclr_tiny() -> SimclrRecipe:
    """`simclr` in half a minute on two CPU cores, for tests and first tries."""
    return in_tiny(simclr())


def simclr_swin() -> SimclrRecipe:
    """`simclr` for scenes whose texture tells what they are: a Swin of 20 m tokens, means and deviations of all stages.

    Crops are a quarter of a site of 640 m. Of archives with sensors of many and of few tiles the few are seen more often than in
    proportion. 700 steps take eleven minutes on two CPU cores. For maps `--token-size-m 40 --global-m 480` is cheaper.
    """
    crops = MultiCrop(num_global=2, global_m=320.0, num_local=0)
    shape = small(crops=crops) | {"backbone": SWIN_SMALL, "token_size_m": 20.0, "pool": "moments"}
    shape["train"] = replace(shape["train"], share_exponent=0.3)
    return SimclrRecipe(**shape, objective=SimclrConfig(hidden=256, dim=64, temperature=0.2))


def simclr_swin_tiny() -> SimclrRecipe:
    """`simclr_swin` in half a minute on two CPU cores."""
    return in_tiny(simclr_swin())


def simclr_resnet50() -> SimclrRecipe:
    """The published ResNet-50 and its schedule: 1000 epochs of 1.28 M images, batch 4096, LARS 0.3 x batch / 256; 32 GPUs.

    For tiles of 224 px of 10 m. 69.1 % on ImageNet (linear) as published, 64.5 % after 100 epochs. Deviations: augmentation
    as far as `published_stream` goes; the head is the released code's (three layers), the paper's has two; norms begin at
    1, also at the end of a residual; LARS has the rate outside its momentum and runs in float32.
    """
    return _published(Single())


def temporal_simclr() -> SimclrRecipe:
    """SimCLR whose views are two seasons of a place, instead of two crops."""
    objective = SimclrConfig(views="dates", hidden=256, dim=64, temperature=0.2)
    return SimclrRecipe(**small(SeasonPair(min_gap_days=30.0), None), objective=objective)


def temporal_simclr_tiny() -> SimclrRecipe:
    """`temporal_simclr` in half a minute on two CPU cores."""
    return in_tiny(temporal_simclr())


def temporal_simclr_resnet50() -> SimclrRecipe:
    """`simclr_resnet50` whose views are two seasons of a place, each cropped and augmented by itself."""
    return _published(SeasonPair(min_gap_days=30.0), views="dates")


def _published(view: View, **objective: Any) -> SimclrRecipe:
    rate, lars = 0.3 * 4096 / 256, {**LARS, "weight_decay": 1e-6}
    train = published(
        images=IMAGENET, epochs=1000, batch=4096, warmup_epochs=10, rate=rate, optimiser=lars, view=view,
        stream=published_stream(0.8, 0.08),
    )  # fmt: skip
    return SimclrRecipe(ResnetConfig(50), 40.0, whole_batch(train, 32), objective=SimclrConfig(**objective))
