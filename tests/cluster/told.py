"""What TensorBoard and MLflow show of a run, read with their own readers, and what a trace holds."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.sinks import mlflow_client
from pipeline import storage

Series = dict[str, list[tuple[int, float]]]
"""Steps and values of each metric, in the order in which they are shown."""


def by_tensorboard(run: Path) -> Series:
    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in shown.Scalars(name)] for name in shown.Tags()["scalars"]}


def by_mlflow(run: Path) -> tuple[Any, Series]:
    client = mlflow_client(str(run / "mlflow"))
    (begun,) = client.search_runs([client.get_experiment_by_name("terraloom").experiment_id])
    assert begun.info.run_id == storage.read_json(str(run / "mlflow.json"))["run_id"]
    histories = {name: client.get_metric_history(begun.info.run_id, name) for name in begun.data.metrics}
    return begun, {name.replace(" to ", "->"): [(m.step, m.value) for m in history] for name, history in histories.items()}


def traced(run: Path) -> list[str]:
    """Names of what was traced."""
    content = json.loads(gzip.decompress((run / "profile" / "trace.json.gz").read_bytes()))
    return [event.get("name", "") for event in content["traceEvents"]]


def in_records(records: list[dict[str, Any]]) -> Series:
    """What should be shown: every number of metrics.jsonl at its step."""
    series: Series = {}
    for record in records:
        for name, value in _numbers(record):
            series.setdefault(name, []).append((record["step"], value))
    return series


def _numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((name, value) for name, value in record.items() if name != "step" and not isinstance(value, str | list | dict))
