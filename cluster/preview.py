"""A few reconstructions of unseen tiles, kept with the run for people to look at."""

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cluster.batches import to_batch
from cluster.run import Run
from pipeline import storage
from pipeline.augment import AugmentConfig
from pipeline.plan import Plan, SetPlan, Step
from pipeline.samples import SampleSource
from pipeline.stream import MicroBatch, StreamConfig, collate, names
from pipeline.windows import OpenShards, resolve

NUM_SAMPLES = 3


def save_reconstructions(objective: Any, source: SampleSource, plan: Plan, run: Run) -> None:
    """Write reconstructions.npz: for each sensor set, sensor and source, what `objective.reconstruct` returns.

    Objectives without `reconstruct` have nothing to show. `source` gives samples that were not trained on.
    """
    if not hasattr(objective, "reconstruct"):
        return
    arrays: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for number, micro in enumerate(_unseen(source, plan)):
            for index in range(len(micro.sensors)):
                batch = to_batch(micro, index)
                panels = objective.reconstruct(batch, torch.Generator().manual_seed(0))
                for sensor, panel in panels.items():
                    for name, value in vars(panel).items():
                        arrays[f"{number}/{index}/{sensor}/{name}"] = np.asarray(value)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(run.path("reconstructions.npz"), buffer.getvalue())


def _unseen(source: SampleSource, plan: Plan) -> Iterator[MicroBatch]:
    """Yield a few samples of each sensor set, drawn by a plan of their own."""
    counts = source.count([trained.sensor_set for trained in plan.sets])
    for number, trained in enumerate(plan.sets):
        shards, sizes = counts[trained.sensor_set]
        if not shards:
            continue
        chosen = SetPlan(trained.sensor_set, shards, sizes, 1, min(NUM_SAMPLES, int(sizes.sum())), len(shards), seed=1)
        window = next(chosen.windows(0, 0))
        few = replace(window, shard=window.shard[: chosen.batch_size], number=window.number[: chosen.batch_size])
        where = names(chosen, few.shard)
        with closing(OpenShards(source.archive, trained.sensor_set, where)) as opened:
            columns = opened.decode(resolve(source, trained.sensor_set, few, where))
        yield collate(source, chosen, Step(0, number, 0), 0, [columns], StreamConfig(augment=AugmentConfig(symmetries=False)))
