"""A checkpoint of any number of ranks, at any ZeRO stage, as one whole model in this process."""

from typing import Any

import torch

from cluster.alone import alone
from cluster.bare import STATE, BareEngine
from cluster.engine import Engine
from cluster.job import Job
from cluster.start import sensors_of
from cluster.zero import ZeroEngine
from pipeline import storage
from pipeline.archive import open_archive


def consolidate(job: Job, checkpoint_url: str) -> tuple[Any, int]:
    """Return the objective with the checkpoint's weights, float32, and how many steps it has taken.

    Needs the memory of one rank that holds all: about 20 bytes a parameter.
    """
    sensors, config = sensors_of(job, open_archive(job.archive_url)), job.config
    objective = job.build(sensors, torch.Generator())
    with storage.local_copy(checkpoint_url) as folder:
        if (folder / STATE).exists():
            engine: Engine = BareEngine(objective, config.optimiser, config.num_steps)
            step = engine.load(str(folder))
            return job.finished(sensors, engine.gather_master_weights()), step
        with alone():
            engine = ZeroEngine(objective, config.optimiser, config.num_steps, config.batch_size, config.lanes)
            step = engine.load(str(folder))
            return job.finished(sensors, engine.gather_master_weights()), step
