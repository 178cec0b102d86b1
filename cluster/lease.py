"""One at a time: a lock in storage that a crashed holder loses after a while.

A holder writes who holds until when, and again before that is over. Another may take the lock once it is given back or over,
and at once where the holder was a process of the same machine that runs no more.
Kubernetes' scheduled Ray jobs may overlap (KubeRay 1.6 knows no concurrency policy for them), so the job itself must not.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.process import has_ended, own_process
from cluster.sequence import Sequence
from pipeline.errors import InputError, RunFailed

SKEW_SECONDS = 30.0
"""By which clocks of different machines may differ: a lock is taken over only so long after it was over."""
KEPT = 3
"""Records that stay; older ones say nothing."""


class Lease:
    """A lock that is held. Call `require` before anything that others must not do at the same time."""

    def __init__(self, records: Sequence, number: int, holder: str, seconds: float):
        self._records, self._number, self._holder, self._seconds = records, number, holder, seconds
        self._until = time.time() + seconds
        self._ended, self._mutex = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                self._renew()
            except InputError:
                continue  # a store that cannot be reached for a while: there are two more attempts before it is over

    def _renew(self) -> None:
        with self._mutex:
            until = time.time() + self._seconds
            if not self._records.append(self._number, _record(self._holder, until)):
                self._until = 0.0
                self._ended.set()
                return
            self._number, self._until = self._number + 1, until
            self._records.forget(self._number - KEPT)

    def require(self) -> None:
        """Raise RunFailed unless the lock is still held."""
        if time.time() >= self._until:
            raise RunFailed(f"the lock of '{self._holder}' was lost to another; run the same command again")

    def give_back(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join()
        with self._mutex:
            if self._until:
                self._records.append(self._number, _record(self._holder, 0.0))


def _record(holder: str, until: float) -> dict[str, Any]:
    return {"holder": holder, "until": until, "process": own_process()}


def holder_of(url: str) -> str | None:
    """Return who holds the lock at `url`, None where nobody does."""
    last = Sequence(url).last()[1]
    return str(last["holder"]) if last and _seconds_left(last) > 0 else None


def _seconds_left(record: dict[str, Any]) -> float:
    if not record["until"] or has_ended(record.get("process", {})):
        return 0.0
    return record["until"] + SKEW_SECONDS - time.time()


def acquire(url: str, holder: str, seconds: float = 600.0) -> Lease:
    """Return the lock at `url`; raise InputError, saying who holds it, where somebody does. `holder` is for people."""
    records = Sequence(url)
    number, last = records.last()
    if last and (left := _seconds_left(last)) > 0:
        raise InputError(f"'{url}' is held by {last['holder']} for {left:.0f} s more; wait, or stop that job")
    if not records.append(number, _record(holder, time.time() + seconds)):
        taken = records.last()[1]
        raise InputError(f"'{url}' was just taken by {taken['holder']}; wait, or stop that job")
    return Lease(records, number + 1, holder, seconds)


@contextmanager
def holding(url: str, holder: str, seconds: float = 600.0) -> Iterator[Lease]:
    """Hold the lock at `url` inside."""
    lease = acquire(url, holder, seconds)
    try:
        yield lease
    finally:
        lease.give_back()
