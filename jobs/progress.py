"""Progress of long work: a bar on a terminal, one line per interval elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import track

from cluster.counters import count, show

T = TypeVar("T")
INTERVAL_SECONDS = 10.0


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield `items`, saying on standard error how far it is."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, label, total=total, console=console)
        return
    shown = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - shown > INTERVAL_SECONDS or number == total:
            shown = time.monotonic()
            print(f"{label}: {number}/{total}", file=sys.stderr, flush=True)


def gather(references: dict[Any, T], label: str, keep_errors: bool = False) -> Iterator[tuple[T, Any]]:
    """Yield (key, result) of Ray tasks as they finish, given {reference: key}.

    What a task raises is raised here, or with `keep_errors` yielded in place of its result.
    """
    pending, stage = list(references), label.split()[0]

    def finished() -> Iterator[tuple[T, Any]]:
        nonlocal pending
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            try:
                result = ray.get(done[0])
            except RayError as error:
                if not keep_errors:
                    raise
                result = error
            count("tasks", stage=stage)
            show("tasks_left", len(pending), stage=stage)
            yield references[done[0]], result

    yield from progress(finished(), len(references), label)
