"""A trace of a few steps on demand: what the first rank did, operation by operation, as torch.profiler sees it.

Decides which steps are traced and what is left of them in RUN/profile: trace.json.gz, which chrome://tracing and
ui.perfetto.dev show, and operators.txt, the operations that took most time themselves. Results do not change.
"""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from cluster.run import Run
from pipeline import storage

FIRST_STEPS = 20
"""Left out after each start: operations are counted in the first step of each kind, caches and queues are still empty."""
NUM_OPERATORS = 25


class Trace:
    """Traces `count` steps of a run that goes from `start` to `num_steps`; `step` is to be called after each."""

    def __init__(self, run: Run, start: int, num_steps: int, count: int, device: torch.device):
        self._run, self._device = run, device
        self._first = max(start, min(start + FIRST_STEPS, num_steps - count))
        self._last = min(self._first + count, num_steps) - 1
        before = self._first - start
        warmup = min(1, before)  # the profiler's own first step
        window = schedule(wait=before - warmup, warmup=warmup, active=self._last - self._first + 1, repeat=1)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._profiler = profile(activities=activities, schedule=window, on_trace_ready=self._write)
        self._profiler.start()

    def step(self) -> None:
        self._profiler.step()

    def _write(self, profiler: Any) -> None:
        by = f"self_{self._device.type}_time_total"
        with storage.staged_folder(self._run.path("profile")) as folder:
            profiler.export_chrome_trace(str(folder / "trace.json.gz"))
            table = profiler.key_averages().table(sort_by=by, row_limit=NUM_OPERATORS, max_name_column_width=60)
            (folder / "operators.txt").write_text(table)
        self._run.event("profiled", first_step=self._first, last_step=self._last, folder="profile")
