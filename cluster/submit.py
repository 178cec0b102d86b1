"""Run a job on a Ray cluster through its job server: same arguments, logs as they come, its exit status as ours."""

import asyncio
import os
import shlex
import sys
import time
from typing import Any

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline import storage
from pipeline.errors import InputError

AGENT_SECONDS = 60
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# What the cluster's side needs to reach the same storage and tracking; values travel in the job's environment, never in a log.
FORWARDED = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")


def submit(arguments: list[str], address: str | None) -> dict[str, Any]:
    """Submit `terraloom *arguments` to the job server at `address`, follow it to its end, and report how it ended.

    The code is the `terraloom` installed on the cluster, of the same version. Relative paths are made absolute, so
    they must be on storage that the cluster sees.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    try:
        client = JobSubmissionClient(address)
        version = client.get_version()
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"no Ray job server at {address} ({reason}); start one with 'ray start --head' or give --address"
        ) from None
    if version != ray.__version__ and not version.startswith(ray.__version__):
        found = getattr(client, "_ray_version", None) or version
        if found[0].isdigit() and found.count(".") == 2 and found != ray.__version__:
            raise InputError(f"the cluster runs Ray {found}, this is {ray.__version__}; install the cluster's version here")
    entrypoint = shlex.join(["terraloom", *map(_absolute, arguments)])
    variables = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    job = _submit_when_ready(client, entrypoint, {"env_vars": variables}, {"job": arguments[0]})
    print(f"submitted {job}: {entrypoint}", file=sys.stderr, flush=True)
    asyncio.run(_follow(client, job))
    info = client.get_job_info(job)
    status = 0 if info.status == JobStatus.SUCCEEDED else int(info.driver_exit_code or 1)
    return {"submission": job, "status": str(info.status), "exit_status": status}


def _submit_when_ready(client: JobSubmissionClient, entrypoint: str, environment: dict[str, Any], metadata: dict[str, str]) -> str:
    """Submit; a cluster that has just started has a job server before it has an agent that starts jobs."""
    limit = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment, metadata=metadata)
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
