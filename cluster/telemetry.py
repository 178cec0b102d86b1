"""What is told about a run while it trains: a line of facts a step in RUN/metrics.jsonl, and the same to the run's sinks.

metrics.jsonl is the record. Sinks (`sinks.py`) are told what it holds; one that fails is left out, and the run goes on.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from cluster.run import Run
from cluster.sinks import Record, Sink, SinkName, open_sinks, said
from pipeline import storage
from pipeline.errors import InputError


class Recorder:
    """Rank 0's metrics.jsonl: one line a step, without the lines that a restart repeats; and those who are told the same.

    places: where sinks write, of `require_sinks`.
    """

    FLUSH_SECONDS = 5.0

    def __init__(self, run: Run, recipe: str, num_steps: int, start: int, world_size: int, places: dict[SinkName, str]):
        self._run, self._url = run, run.path("metrics.jsonl")
        self._pending: list[Record] = []
        self._written = time.monotonic()
        kept: list[str] = []
        if storage.exists(self._url):
            lines = storage.read_bytes(self._url).decode().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < start]
            storage.write_bytes(self._url, "".join(line + "\n" for line in kept).encode())
        run.event("training", start=start, steps=num_steps, workers=world_size)
        self._sinks = open_sinks(places, run, recipe)
        self._each(lambda sink: sink.begin(start, map(json.loads, kept)))

    def record(self, step: int, sensor_set: str, terms: dict[str, Any], facts: dict[str, float]) -> None:
        told = {"step": step, "sensor_set": sensor_set, **terms, **facts}
        # JSON has no NaN: a step that was left out for one says null.
        self._pending.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in told.items()})
        if time.monotonic() - self._written > self.FLUSH_SECONDS:
            with suppress(InputError):  # a store that cannot be reached for a while: the lines wait for the next time
                self.flush()

    def flush(self) -> None:
        """Write and tell what waits; raise InputError, and keep it, if it cannot be written."""
        records, self._written = self._pending, time.monotonic()
        if records:
            storage.append_line(self._url, "\n".join(map(json.dumps, records)))
            self._pending = []
            self._each(lambda sink: sink.tell(records))

    def close(self, is_finished: bool) -> None:
        """Write and tell what is left, and that the run has finished or failed."""
        self.flush()
        self._each(lambda sink: sink.end(is_finished))

    def _each(self, action: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                action(sink)
            except Exception as error:  # whatever becomes of a service, the run does not end with it
                del self._sinks[name]
                self._run.event("sink_failed", sink=name, because=said(error))


class TokenCount:
    """Counts the tokens that enter an encoder's `backbone` in training: those of hidden ground too, where they have any."""

    def __init__(self, backbone: nn.Module):
        self._count = 0
        backbone.register_forward_pre_hook(self._add)

    def _add(self, backbone: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if backbone.training:  # a look at its health is no training
            self._count += arguments[0].shape[:-1].numel()

    def take(self) -> int:
        """Return how many there were since this was last asked."""
        count, self._count = self._count, 0
        return count
