"""Connect to a Ray cluster, or start one on this machine, and check that it can hold what is asked."""

import logging
import os
import warnings

import ray

from pipeline.errors import InputError


def connect(address: str | None = None) -> None:
    """Join the cluster at `address` or `RAY_ADDRESS`; without either, start Ray on this machine for this process."""
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    ray.init(
        address=address,
        include_dashboard=False if address is None else None,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": quiet_libraries},
    )
    quiet_libraries()


def quiet_libraries() -> None:
    """Keep Ray's own notices out of a job's output: they speak to who writes programs with Ray. Errors still come."""
    for name in ("ray.data", "ray.train", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


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
