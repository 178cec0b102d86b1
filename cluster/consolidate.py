"""A checkpoint of any number of ranks, at any ZeRO stage, as one whole model in this process."""

import os
import tempfile
from typing import Any

import torch
import torch.distributed as dist

from cluster.bare import STATE, BareEngine
from cluster.batches import sensor_specs
from cluster.engine import Engine
from cluster.job import Job
from cluster.zero import ZeroEngine
from pipeline import storage
from pipeline.archive import open_archive


def consolidate(job: Job, checkpoint_url: str) -> tuple[Any, int]:
    """Return the objective with the checkpoint's weights, float32, and how many steps it has taken.

    Needs the memory of one rank that holds all: about 20 bytes a parameter.
    """
    sensors, config = sensor_specs(open_archive(job.archive_url)), job.config
    objective = job.build(sensors, torch.Generator())
    with storage.local_copy(checkpoint_url) as folder, tempfile.TemporaryDirectory() as meeting:
        if (folder / STATE).exists():
            engine: Engine = BareEngine(objective, config.optimiser, config.num_steps)
            step = engine.load(str(folder))
            return job.finished(sensors, engine.gather_master_weights()), step
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group("gloo", init_method=f"file://{meeting}/meeting", rank=0, world_size=1)
        try:
            engine = ZeroEngine(objective, config.optimiser, config.num_steps, config.batch_size, config.lanes)
            step = engine.load(str(folder))
            return job.finished(sensors, engine.gather_master_weights()), step
        finally:
            dist.destroy_process_group()
