"""The loss of a trained objective on samples of the val split: always the same ones, hidden and cropped the same way."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch

from cluster.bare import BareEngine
from cluster.batches import sensor_specs, to_batch
from cluster.checkpoints import checkpoint_url
from cluster.job import Job
from cluster.run import Run
from cluster.snapshot import count, plan_of
from models.health import evaluating
from pipeline import storage
from pipeline.archive import Archive
from pipeline.samples import SampleSource
from pipeline.stream import Stream

BATCH = 32
SEED = 20_240_229
"""Of what is hidden, cropped and drawn when a loss is asked."""
MEAN = "mean"


def trained_objective(run: Run, recipe: Any, archive: Archive, exam: Any) -> Any:
    """Return the whole objective of a run that trained in one process, its heads too, as `exam`'s settings have it."""
    job = Job(run.url, archive.url, "pretrain", exam.train, exam.build, {})
    specs = sensor_specs(archive)
    engine = BareEngine(recipe.build(specs, torch.Generator()), recipe.train.optimiser, recipe.train.num_steps)
    with storage.local_copy(checkpoint_url(run, None)) as folder:
        engine.load(str(folder))
    return job.finished(specs, engine.gather_master_weights())


@torch.no_grad()
def held_out(objective: Any, recipe: Any, archive: Archive, num_samples: int) -> dict[str, float]:
    """Return the mean loss by sensor set and 'mean' over them, and every term that is one sensor's, of about `num_samples`."""
    train = recipe.train
    source = SampleSource(archive, train.view, ("val",))
    counts = count(source, train.sensor_sets)
    plan = plan_of(counts, 1, BATCH, train.window_shards, SEED)
    steps = max(len(counts), round(num_samples / BATCH))
    reading = replace(train.stream, decode="process")
    sums: dict[str, list[float]] = defaultdict(list)
    with evaluating(objective):
        for step, (micro,) in enumerate(Stream(source, plan, 0, 1, 0, steps, reading)):
            terms = objective(to_batch(micro), torch.Generator().manual_seed(SEED + step))
            name = "+".join(plan.sets[micro.step.sensor_set].sensor_set)
            sums[name].append(float(terms["loss"]))
            for term, value in terms.items():
                if "/" in term:
                    sums[term].append(float(value))
    found = {name: sum(values) / len(values) for name, values in sums.items()}
    of_sets = [value for name, value in found.items() if "/" not in name]
    return {MEAN: sum(of_sets) / len(of_sets), **found}
