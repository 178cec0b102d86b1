"""Show how a run is doing while its workers write: a bar on a terminal, one line per interval elsewhere."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.run import Run
from pipeline import storage
from pipeline.errors import InputError

INTERVAL_SECONDS = 10.0


@contextmanager
def follow(run: Run, num_steps: int) -> Iterator[None]:
    """Report the run's steps and new events on standard error until the block ends."""
    stopped = threading.Event()
    thread = threading.Thread(target=_report, args=(run, num_steps, stopped), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _report(run: Run, num_steps: int, stopped: threading.Event) -> None:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    told, shown = {repr(event) for event in run.events()}, -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(run.job, total=num_steps)
        while True:
            is_last = stopped.wait(INTERVAL_SECONDS)
            try:
                events, lines = run.events(), _lines(run, "metrics.jsonl")
            except InputError:  # a store that cannot be reached: nothing can be said, and the run may outlast it
                events, lines = [], []
            for event in (event for event in events if repr(event) not in told):
                facts = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("time", "event", "reason"))
                bar.console.print(f"{run.job}: {event['event']} ({facts})")
            told.update(map(repr, events))
            if lines:
                latest = json.loads(lines[-1])
                text = f"{run.job}  {_told(latest)}"
                bar.update(task, completed=latest["step"] + 1, description=text)
                if bar.disable and latest["step"] != shown:
                    console.print(f"{text}  step {latest['step'] + 1}/{num_steps}")
                shown = latest["step"]
            if is_last:
                return


def _told(record: dict[str, Any]) -> str:
    """Return a step's facts in few words: a bar beside them still has room on 80 columns."""
    speed, waits = record["samples_per_second"], record["data_wait_share"]
    memory = f"  {record['memory_gib']:.1f} GiB" if "memory_gib" in record else ""  # not in runs begun before it was told
    loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
    return f"loss {loss}  {speed:.0f} samples/s  waits {waits:.0%}{memory}"


def _lines(run: Run, name: str) -> list[str]:
    url = run.path(name)
    content = storage.read_bytes(url).decode() if storage.exists(url) else ""
    return [line for line in content.split("\n")[:-1] if line]
