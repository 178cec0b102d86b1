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
    # Ray keeps only as many idle processes as there are CPUs; on a laptop read tasks then start a fresh one (seconds of
    # imports) every time, which took half of the training's speed on two cores.
    local = {"num_workers_soft_limit": 16, "idle_worker_killing_time_threshold_ms": 600_000}
    ray.init(
        address=address or "local",  # None would join whatever cluster 'ray start' left running on this machine
        _system_config=local if address is None else None,
        include_dashboard=False if address is None else None,
        logging_level=logging.ERROR,
        # What workers have to say goes through run folders and results; Ray's notices to programmers stay in its logs.
        log_to_driver=False,
    )


def require_resources(num_workers: int, cpus_per_worker: float, other_cpus: float, gpus_per_worker: float) -> None:
    """Raise an InputError unless the cluster has the CPUs and GPUs that a run needs at once."""
    found = ray.cluster_resources()
    needed = {"CPU": num_workers * cpus_per_worker + other_cpus, "GPU": num_workers * gpus_per_worker}
    for kind, amount in needed.items():
        if found.get(kind, 0) + 1e-9 < amount:
            raise InputError(
                f"{num_workers} workers need {amount:g} {kind}s, the cluster has {found.get(kind, 0):g}; "
                f"use fewer workers (--workers) or a larger cluster"
            )
