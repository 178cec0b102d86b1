"""Run a job on a Ray cluster through its job server: same arguments, logs as they come, its exit status as ours."""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
import ray
import tyro
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.forwarded import forwarded, require_no_password
from pipeline import storage
from pipeline.errors import ClusterGone, InputError

AGENT_SECONDS = 60
STOP_SECONDS = 60
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class SubmitConfig:
    """Where a job is submitted and what its driver has."""

    address: str | None = None
    """Of the job server; default: RAY_API_SERVER_ADDRESS, or this machine's."""
    driver_cpus: int = 0
    """CPUs of the cluster that are kept for the driver, the job's own process; 0: it runs on the head beside its tables."""
    driver_gpus: int = 0
    env: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A variable that the job has as it is set here, beside those of the store's place; again for each. Others see its value."""

    def __post_init__(self) -> None:
        for field in ("driver_cpus", "driver_gpus"):
            if getattr(self, field) < 0:
                raise InputError(f"{field} is {getattr(self, field)}, expected at least 0")


@contextmanager
def _with_token() -> Iterator[None]:
    """Turn what Ray says of a token that is missing, unreadable or wrong into one line; the token is not in it."""
    try:
        yield
    except AuthenticationError as error:
        reason = error.message.splitlines()[0].split(". ")[0]
        raise InputError(
            f"the job server takes no request from here ({reason}), expected the cluster's own token; "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that has it (RAY_AUTH_TOKEN goes before it)"
        ) from None


def submit(arguments: list[str], config: SubmitConfig) -> dict[str, Any]:
    """Submit `terraloom *arguments` to the job server at `config.address`, follow it to its end, and report how it ended.

    The code is the `terraloom` installed on the cluster, of the same version. Relative paths are made absolute, so
    they must be on storage that the cluster sees.
    """
    client = job_server(config.address)
    return follow(client, begin(client, arguments, config))


@_with_token()
def begin(client: JobSubmissionClient, arguments: list[str], config: SubmitConfig = SubmitConfig()) -> str:
    """Submit `terraloom *arguments` and return the job's name on the cluster."""
    for argument in arguments:
        require_no_password("argument", argument)
    entrypoint = shlex.join(["terraloom", *map(_absolute, arguments)])
    job = _submit_when_ready(
        client,
        entrypoint=entrypoint,
        runtime_env={"env_vars": forwarded(config.env)},
        metadata={"job": arguments[0]},
        entrypoint_num_cpus=config.driver_cpus or None,
        entrypoint_num_gpus=config.driver_gpus or None,
    )
    print(f"submitted {job}: {entrypoint}", file=sys.stderr, flush=True)
    return job


@_with_token()
def job_server(address: str | None) -> JobSubmissionClient:
    """Return the job server at `address`, RAY_API_SERVER_ADDRESS or this machine's; raise InputError for none or another Ray's."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"no Ray job server at {address} ({reason}); start one with 'ray start --head' or give --address"
        ) from None
    if client._server_ray_version != ray.__version__:
        raise InputError(
            f"the cluster at {address} runs Ray {client._server_ray_version}, this is {ray.__version__}; install the cluster's here"
        )
    return client


@_with_token()
def follow(client: JobSubmissionClient, job: str) -> dict[str, Any]:
    """Print a job's log as it is written, from its beginning, until it ends; return how it ended."""
    _require(client, job)
    try:
        asyncio.run(_follow(client, job))
        while not client.get_job_status(job).is_terminal():  # a log can end before its job has
            time.sleep(0.5)
        return status(client, job)
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ClusterGone(
            f"the cluster has gone while job '{job}' was followed ({reason}); submit the same again once there is one: it goes on"
        ) from None


@_with_token()
def status(client: JobSubmissionClient, job: str) -> dict[str, Any]:
    """Return where a job stands; its exit status is 0 while it has none."""
    _require(client, job)
    info = client.get_job_info(job)
    is_well = not info.status.is_terminal() or info.status == JobStatus.SUCCEEDED
    facts = {"submission": job, "status": info.status.value, "entrypoint": info.entrypoint}
    return facts | {"exit_status": 0 if is_well else int(info.driver_exit_code or 1)}


@_with_token()
def stop(client: JobSubmissionClient, job: str) -> dict[str, Any]:
    """Stop a job and wait until it has ended: a run goes on from its last checkpoint when it is submitted again."""
    _require(client, job)
    client.stop_job(job)
    limit = time.monotonic() + STOP_SECONDS
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > limit:
            raise InputError(f"job '{job}' has not ended {STOP_SECONDS} s after it was told to; ask again for its status")
        time.sleep(0.5)
    return status(client, job) | {"exit_status": 0}


def _require(client: JobSubmissionClient, job: str) -> None:
    known = [info.submission_id for info in client.list_jobs() if info.submission_id]
    if job not in known:
        raise InputError(f"the cluster knows no job '{job}' (knows {', '.join(known) or 'none'})")


def _submit_when_ready(client: JobSubmissionClient, **job: Any) -> str:
    """Submit; a cluster that has just started has a job server before it has an agent that starts jobs."""
    limit = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > limit:
                raise InputError(
                    f"no node of the cluster takes jobs after {AGENT_SECONDS} s; another Ray may hold the agent's port: "
                    "give 'ray start' a free --dashboard-agent-listen-port"
                ) from None
            time.sleep(1)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def _absolute(argument: str) -> str:
    """Return a path argument as absolute, anything else unchanged: a job starts in another working directory."""
    looks_like_path = not argument.startswith("-") and ("/" in argument or os.path.exists(argument))
    return storage.absolute(argument) if looks_like_path else argument
