"""What jobs count beside a run's own metrics: jobs, tasks, tiles and samples, exported by every Ray node for Prometheus.

A name here is `ray_terraloom_<name>` there, of counters with `_total` behind it. Without Ray nobody counts. What a training
step measures is told by `sinks.py`; the dashboard of both is `grafana/terraloom.json`.
"""

from functools import cache

import ray
from ray.util.metrics import Counter, Gauge

COUNTERS = {
    "jobs": ("Jobs that have ended", ("job", "outcome")),
    "tasks": ("Tasks that have ended", ("stage",)),
    "tiles": ("Tiles written, checked or embedded", ("job",)),
    "samples": ("Samples trained on", ("run",)),
}
GAUGES = {
    "tasks_left": ("Tasks that have not ended", ("stage",)),
}


def count(name: str, amount: float = 1, **tags: str) -> None:
    """Add to one of COUNTERS."""
    if ray.is_initialized() and amount > 0:
        _counter(name, ray.get_runtime_context().gcs_address).inc(amount, tags)


def show(name: str, value: float, **tags: str) -> None:
    """Set one of GAUGES."""
    if ray.is_initialized():
        _gauge(name, ray.get_runtime_context().gcs_address).set(value, tags)


@cache
def _counter(name: str, cluster: str) -> Counter:
    """Return a counter of this process on one cluster; what an earlier one had is gone with it."""
    about, tags = COUNTERS[name]
    return Counter(f"terraloom_{name}", about, tags)


@cache
def _gauge(name: str, cluster: str) -> Gauge:
    about, tags = GAUGES[name]
    return Gauge(f"terraloom_{name}", about, tags)
