"""Let an iterator run ahead of its consumer, in a thread of its own."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.1


def run_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield `items`, up to `depth` of which are made before they are asked for; their errors are raised in order."""
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    left = threading.Event()

    def put(is_error: bool, value: Any) -> None:
        while not left.is_set():
            try:
                made.put((is_error, value), timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(False, item)
                if left.is_set():
                    return
            put(True, None)
        except BaseException as error:  # raised again where it is waited for
            put(True, error)

    threading.Thread(target=make, name="run-ahead", daemon=True).start()
    try:
        while True:
            is_last, value = made.get()
            if not is_last:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        left.set()
