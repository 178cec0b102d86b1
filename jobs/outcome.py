"""What others are told of a job as a whole: when it began and how it ended, in its log on a cluster and at Ray's metrics.

What happens inside a run stands in its events.jsonl.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from models.errors import InputError as ModelInputError
from pipeline.errors import InputError, RunFailed

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray's job server sets for the processes that it starts."""


@contextmanager
def told(job: str) -> Iterator[None]:
    """Tell how the block ends: done, refused (wrong input), failed (a run that cannot come to a good end) or crashed."""
    started, outcome = time.time(), "crashed"
    _event("job_started", job)
    try:
        yield
        outcome = "done"
    except (InputError, ModelInputError):
        outcome = "refused"
        raise
    except RunFailed:
        outcome = "failed"
        raise
    finally:
        if "ray" in sys.modules:
            from cluster.counters import count

            count("jobs", job=job, outcome=outcome)
        _event("job_ended", job, outcome=outcome, seconds=round(time.time() - started, 1))


def _event(kind: str, job: str, **facts: Any) -> None:
    """Write a line of JSON into the log of a job that was submitted; at a terminal people see the job itself."""
    if SUBMITTED in os.environ:
        print(json.dumps({"time": time.time(), "event": kind, "job": job, **facts}), file=sys.stderr, flush=True)
