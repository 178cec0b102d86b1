"""A run's folder: what a job writes, under which name, and how it knows its own earlier self."""

import importlib.metadata
import json
import re
import time
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import InputError, RunFailed

PLACEMENT = {
    *("workers", "cpus_per_worker", "gpus_per_worker", "threads_per_worker", "timeout_s"),
    *("keep_last", "keep_every", "keep_best", "sinks", "profile"),
}
"""Settings that say where a run is executed, what stays of it and who is told of it, not what it is."""
_EVENTS = re.compile(r"events(\.\d+)?\.jsonl")
PACKAGES = ("terraloom", "torch", "ray", "deepspeed", "zarr", "numpy", "scikit-learn")


class Run:
    """The folder at `url` of one execution of `job`, for that of its processes which has `rank`."""

    def __init__(self, url: str, job: str, rank: int = 0):
        self.url = storage.absolute(url)
        self.job, self._rank = job, rank

    def path(self, *parts: str) -> str:
        return storage.join(self.url, *parts)

    def begin(self, config: Any, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Record what this run is; return its summary if it has finished before.

        An unfinished run of the same configuration goes on, on other workers if so wished; a folder of anything else is refused.
        """
        content = {"job": self.job, "inputs": inputs, "config": _plain(asdict(config))}
        if storage.exists(self.path("config.json")):
            found = storage.read_json(self.path("config.json"))
            found["config"] = _plain(_with_defaults(found.get("config", {}), config))
            different = _first_difference({k: found.get(k) for k in content}, content)
            if different:
                raise InputError(f"'{self.url}' holds a run with {different}; use a new folder or the same arguments")
            if storage.exists(self.path("summary.json")):
                return storage.read_json(self.path("summary.json"))
        try:
            if storage.names(self.url) and not storage.exists(self.path("config.json")):
                raise InputError(f"'{self.url}' is not empty and not a run; give a new folder")
            storage.write_json(self.path("config.json"), content | {"versions": versions()})
        except OSError as error:
            raise InputError(f"'{self.url}' cannot be written to ({error.strerror or error}); give a folder that can") from None
        return None

    def event(self, kind: str, **facts: Any) -> None:
        """Append a line to events.jsonl, to events.RANK.jsonl as another than the first: on S3 the last to append wins."""
        name = f"events.{self._rank}.jsonl" if self._rank else "events.jsonl"
        storage.append_line(self.path(name), json.dumps({"time": time.time(), "event": kind, **facts}, default=str))

    def events(self) -> list[dict[str, Any]]:
        """Return what every rank wrote down, by time."""
        found: list[dict[str, Any]] = []
        for name in filter(_EVENTS.fullmatch, storage.names(self.url)):
            found += map(json.loads, storage.read_bytes(self.path(name)).decode().split("\n")[:-1])  # the last may not be whole yet
        return sorted(found, key=lambda event: event["time"])

    def raise_failure(self) -> None:
        """Raise RunFailed with the reason that an earlier execution left, if it left one."""
        for event in self.events():
            if event["event"] == "failed":
                raise RunFailed(event["reason"])

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write summary.json, which makes the run count as finished, and return it."""
        summary = {"job": self.job, "run": self.url, **summary}
        storage.write_json(self.path("summary.json"), summary)
        return summary


def require_run(url: str, job: str | tuple[str, ...], artefact: str) -> Run:
    """Return the finished run at `url`, or say what is missing."""
    run = Run(url, job if isinstance(job, str) else job[0])
    if not storage.exists(run.path(artefact)):
        state = "has not finished" if storage.exists(run.path("config.json")) else "is no run"
        jobs = job if isinstance(job, str) else " or ".join(job)
        raise InputError(f"'{url}' {state} ({artefact} is missing); give the run folder of a finished {jobs}")
    return run


def versions() -> dict[str, str]:
    """Return the versions of what results may depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _with_defaults(found: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return what a run recorded, with the defaults of settings that did not exist then."""
    filled = dict(found)
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value) and isinstance(filled.get(one.name), dict):
            filled[one.name] = _with_defaults(filled[one.name], value)
        elif one.name not in filled and one.default is not MISSING:
            filled[one.name] = one.default
        elif one.name not in filled and one.default_factory is not MISSING:
            filled[one.name] = one.default_factory()
    return filled


def _plain(config: dict[str, Any]) -> Any:
    """Return what is read again of what is written."""
    return json.loads(json.dumps(config, default=asdict))


def _first_difference(found: Any, wanted: Any, where: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted((found.keys() | wanted.keys()) - PLACEMENT):
            if different := _first_difference(found.get(key), wanted.get(key), f"{where}.{key}".strip(".")):
                return different
        return None
    return None if found == wanted else f"{where} = {found!r}, not {wanted!r}"
