"""Connect to a Ray cluster, or start one on this machine, and check that it can hold what is asked."""

import logging
import os
import sys

import ray
from ray.util import placement_group, remove_placement_group

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
    """Raise an InputError unless the cluster has the CPUs and GPUs that a run needs at once.

    Where TERRALOOM_NODE_WAIT_S says for how many seconds nodes may be on their way, ask for them and wait so long.
    """
    wait_s = _node_wait_s()
    found = _missing(num_workers, cpus_per_worker, other_cpus, gpus_per_worker)
    if found and wait_s:
        worker = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})
        print(f"{found[0]}; waiting up to {wait_s:.0f} s for more nodes", file=sys.stderr, flush=True)
        # What an autoscaler sees is what is asked for; the bundles are given back at once, and nodes stay a while when idle.
        asked = placement_group([worker] * num_workers + ([{"CPU": other_cpus}] if other_cpus else []))
        try:
            asked.wait(wait_s)
        finally:
            remove_placement_group(asked)
        found = _missing(num_workers, cpus_per_worker, other_cpus, gpus_per_worker)
    if found:
        raise InputError(f"{found[0]}; use fewer workers (--workers) or a larger cluster")


def _node_wait_s() -> float:
    given = os.environ.get("TERRALOOM_NODE_WAIT_S", "0")
    try:
        return float(given)
    except ValueError:
        raise InputError(f"TERRALOOM_NODE_WAIT_S is '{given}', expected a number of seconds") from None


def _missing(num_workers: int, cpus_per_worker: float, other_cpus: float, gpus_per_worker: float) -> list[str]:
    has = ray.cluster_resources()
    needed = {"CPU": num_workers * cpus_per_worker + other_cpus, "GPU": num_workers * gpus_per_worker}
    return [
        f"{num_workers} workers need {amount:g} {kind}s, the cluster has {has.get(kind, 0):g}"
        for kind, amount in needed.items()
        if has.get(kind, 0) + 1e-9 < amount
    ]
