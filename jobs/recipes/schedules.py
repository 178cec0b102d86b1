"""How long recipes train: published schedules in steps, and the tiny one that every recipe has."""

from dataclasses import replace
from typing import Any

from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig

LANES, WORKERS = 64, 8
IMAGENET = 1_281_167
"""Images of one epoch of the methods that were published on ImageNet-1k."""


def published(
    *, images: int, epochs: int, batch: int, warmup_epochs: int, rate: float, optimiser: dict[str, Any] | None = None, **train: Any
) -> TrainConfig:
    """Return a schedule of `epochs` over `images` on eight GPUs; `rate` is the peak rate for the whole batch."""
    per_epoch, lanes = images // batch, min(LANES, batch)
    settings = {"learning_rate": rate, "warmup_steps": warmup_epochs * per_epoch, "final_rate_share": 0.0, **(optimiser or {})}
    return TrainConfig(
        num_steps=epochs * per_epoch,
        batch_size=batch // lanes,
        lanes=lanes,
        workers=str(WORKERS),
        gpus_per_worker=1.0,
        checkpoint_every=per_epoch,
        optimiser=OptimiserConfig(**settings),
        **train,
    )


def tiny(train: TrainConfig, **changes: Any) -> TrainConfig:
    """Return the same run in well under a minute on two CPU cores, given a backbone to match."""
    optimiser = replace(train.optimiser, learning_rate=1e-3, warmup_steps=10)
    return replace(
        train, **{"num_steps": 60, "batch_size": 16, "checkpoint_every": 20, "health_every": 20, "optimiser": optimiser, **changes}
    )


def whole_batch(train: TrainConfig, workers: int) -> TrainConfig:
    """Return the same run with one micro-batch a worker, for what compares the samples of a batch with one another."""
    return replace(train, workers=str(workers), lanes=workers, batch_size=train.lanes * train.batch_size // workers)
