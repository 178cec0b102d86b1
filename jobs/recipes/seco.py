"""SeCo: seasonal contrast (Manas et al. 2021, arXiv 2103.16607)."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from jobs.recipes.joint import SGD, JointRecipe, published_stream, small
from jobs.recipes.schedules import published, tiny, whole_batch
from models.objectives.seco import Seco, SecoConfig
from models.resnet import ResnetConfig
from pipeline.crops import MultiCrop
from pipeline.views import DateTriple

KIND = "pretrain"
LOCATIONS = 200_000
SMALL_CROPS = MultiCrop(num_global=4, global_m=480.0, num_local=0, num_plain=2)
CROPS = MultiCrop(num_global=4, global_m=2240.0, num_local=0, num_plain=2, step_m=10.0)


@dataclass(frozen=True)
class SecoRecipe(JointRecipe):
    objective: SecoConfig = field(default_factory=SecoConfig)
    makes: ClassVar[Any] = Seco


def seco() -> SecoRecipe:
    """SeCo in small: a ResNet-18 of a quarter of the width, queues of 2048 keys, momentum 0.99, AdamW.

    As in `seco_resnet18`, a site's triples of dates are drawn once and not anew in each pass.
    """
    shape = {**small(DateTriple(), SMALL_CROPS), "backbone": ResnetConfig(18, embed_dim=16)}
    return SecoRecipe(**shape, objective=SecoConfig(queue_size=2048, dim=64, momentum=0.99))


def seco_tiny() -> SecoRecipe:
    """`seco` in half a minute on two CPU cores."""
    recipe = seco()
    return replace(recipe, train=tiny(recipe.train), objective=replace(recipe.objective, queue_size=512))


def seco_resnet18() -> SecoRecipe:
    """The published ResNet-18 and its schedule: 200 epochs of 200 k places, batch 256, SGD 0.03, a tenth at 120 and 160; 8 GPUs.

    For tiles of 264 px of 10 m on sites with five dates of Sentinel-2 (`--site-size-m 2640`). BigEarthNet mAP 77.0 frozen,
    87.3 fine-tuned; EuroSAT 93.1; OSCD F1 46.9 as published. Deviations: a tile's windows of 224 px are cut before a part of
    20 to 100 % is resized; all bands, not red, green and blue; triples of dates are drawn once; each date is the first of
    one, so places with more dates come more often; batch norm over the whole batch; augmentation as far as
    `published_stream` goes.
    """
    return _published(18)


def seco_resnet50() -> SecoRecipe:
    """The published ResNet-50: BigEarthNet mAP 80.4 frozen, 87.8 fine-tuned; see `seco_resnet18`."""
    return _published(50)


def _published(depth: Literal[18, 50]) -> SecoRecipe:
    train = published(
        images=LOCATIONS, epochs=200, batch=256, warmup_epochs=0, rate=0.03, optimiser={**SGD, "decay_at": (0.6, 0.8)},
        view=DateTriple(), stream=published_stream(0.4, 0.2, CROPS), sensor_sets=(("sentinel2_l2a",),),
    )  # fmt: skip
    return SecoRecipe(ResnetConfig(depth), 40.0, whole_batch(train, 8))
