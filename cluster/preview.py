"""A few reconstructions of unseen tiles, kept with the run for people to look at."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cluster.batches import to_batch
from cluster.run import Run
from pipeline import storage
from pipeline.archive import Archive
from pipeline.plan import Plan, SetPlan, Step
from pipeline.stream import MicroBatch, collate, read_window, tile_times
from pipeline.views import samples

NUM_SAMPLES = 3


def save_reconstructions(objective: Any, archive: Archive, plan: Plan, run: Run) -> None:
    """Write reconstructions.npz: for each sensor set, sensor and source, what `objective.reconstruct` returns.

    Objectives without `reconstruct` have nothing to show. Uses tiles outside the train split.
    """
    if not hasattr(objective, "reconstruct"):
        return
    arrays: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for number, micro in enumerate(_unseen(archive, plan)):
            for index in range(len(micro.sensors)):
                batch = to_batch(micro, index)
                panels = objective.reconstruct(batch, torch.Generator().manual_seed(0))
                for sensor, panel in panels.items():
                    for name, value in vars(panel).items():
                        arrays[f"{number}/{index}/{sensor}/{name}"] = np.asarray(value)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    storage.write_bytes(run.path("reconstructions.npz"), buffer.getvalue())


def _unseen(archive: Archive, plan: Plan) -> Iterator[MicroBatch]:
    catalog = archive.catalog()
    held_out = catalog[catalog["split"] != "train"]
    for number, trained in enumerate(plan.sets):
        names = set(held_out["sensor"])
        if not names.issuperset(trained.sensor_set):
            continue
        table = samples(held_out, trained.sensor_set)
        count = min(NUM_SAMPLES, len(table))
        chosen = SetPlan(trained.sensor_set, table, 1, count, len(table), seed=1)
        window = next(chosen.windows(0, 0))
        columns = read_window(archive, chosen, tile_times(catalog), window)
        first = {name: column[:count] for name, column in columns.items()}
        yield collate(archive, chosen, Step(0, number, 0), 0, first)
