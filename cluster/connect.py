"""Connect to a Ray cluster, or start one on this machine, and check that it can hold what is asked."""

import logging
import os
import sys
from collections.abc import Callable

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
    bundles = [_bundle(cpus_per_worker, gpus_per_worker)] * num_workers + ([{"CPU": other_cpus}] if other_cpus else [])
    if found := _after_waiting(bundles, lambda: _missing(num_workers, cpus_per_worker, other_cpus, gpus_per_worker)):
        raise InputError(f"{found}; use fewer workers (--workers) or a larger cluster")


def require_node(cpus: float, gpus: float, do: str) -> None:
    """Raise an InputError, which ends with what to `do`, unless one machine of the cluster has so many CPUs and GPUs; else

    Ray would wait for one without a word. Waits for nodes as `require_resources` does.
    """

    def missing() -> str:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            return ""
        largest = max(((node.get("GPU", 0), node.get("CPU", 0)) for node in nodes), default=(0, 0))
        return f"no node has {cpus:g} CPUs and {gpus:g} GPUs, the largest has {largest[1]:g} and {largest[0]:g}"

    if found := _after_waiting([_bundle(cpus, gpus)], missing):
        raise InputError(f"{found}; {do}")


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _after_waiting(bundles: list[dict[str, float]], missing: Callable[[], str]) -> str:
    """Return what is missing, '' if nothing is, once nodes that may be on their way had the time to come."""
    wait_s = _node_wait_s()
    found = missing()
    if not found or not wait_s:
        return found
    print(f"{found}; waiting up to {wait_s:.0f} s for more nodes", file=sys.stderr, flush=True)
    # What an autoscaler sees is what is asked for; the bundles are given back at once, and nodes stay a while when idle.
    asked = placement_group(bundles)
    try:
        asked.wait(wait_s)
    finally:
        remove_placement_group(asked)
    return missing()


def _node_wait_s() -> float:
    given = os.environ.get("TERRALOOM_NODE_WAIT_S", "0")
    try:
        return float(given)
    except ValueError:
        raise InputError(f"TERRALOOM_NODE_WAIT_S is '{given}', expected a number of seconds") from None


def _missing(num_workers: int, cpus_per_worker: float, other_cpus: float, gpus_per_worker: float) -> str:
    has = ray.cluster_resources()
    needed = {"CPU": num_workers * cpus_per_worker + other_cpus, "GPU": num_workers * gpus_per_worker}
    for kind, amount in needed.items():
        if has.get(kind, 0) + 1e-9 < amount:
            return f"{num_workers} workers need {amount:g} {kind}s, the cluster has {has.get(kind, 0):g}"
    return ""
