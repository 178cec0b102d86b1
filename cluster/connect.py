"""Connect to a Ray cluster, or start one on this machine, and check that it can hold what is asked."""

import logging
import os

import ray

from pipeline.errors import InputError


def connect(address: str | None = None) -> None:
    """Join the cluster at `address` or `RAY_ADDRESS`; without either, start Ray on this machine for this process."""
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    # Ray's own lines are of no use to who runs a job; warnings and errors still come.
    ray.init(address=address, include_dashboard=False if address is None else None, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False


def require_resources(num_workers: int, cpus_per_worker: float, other_cpus: float, gpus_per_worker: float) -> None:
    """Raise an InputError unless the cluster has the CPUs and GPUs that a run needs at once."""
    found = ray.cluster_resources()
    needed = {"CPU": num_workers * cpus_per_worker + other_cpus, "GPU": num_workers * gpus_per_worker}
    for kind, amount in needed.items():
        if found.get(kind, 0) + 1e-9 < amount:
            raise InputError(
                f"{num_workers} workers need {amount:g} {kind}s, the cluster has {found.get(kind, 0):g}; "
                f"use fewer workers (--train.workers) or a larger cluster"
            )
