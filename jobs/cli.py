"""The command `terraloom`: arguments in, one job run, its summary out.

Exit status 0: done. 2: the input is wrong, one line says what to do. 1: a run that failed, one line says why; anything else,
with the traceback.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from typing import Any

from jobs import data_commands, model_commands, retrain_commands, sweep_commands
from jobs.outcome import told
from models.errors import InputError as ModelInputError
from pipeline.errors import ClusterGone, InputError, RunFailed

USAGE = """usage: terraloom JOB ... [--json]

  simulate   OUT                               render a synthetic planet: scenes of four sensors with known truth
  scan       FOLDER                            describe plain raster files as a STAC catalog
  coregister SCENES ARCHIVE                    register scenes to each other and cut them into an archive
  ingest     LAYOUT FOLDER ARCHIVE             put ready-made chips into an archive
  verify     ARCHIVE                           prove an archive's checksums, counts and value ranges
  inspect    ARCHIVE                           say what is in an archive
  repair     ARCHIVE                           make its catalog anew from whole shards, list what is lost
  pretrain   RECIPE ARCHIVE RUN                train a foundation model
  export     RUN MODEL                         write the encoder of a checkpoint, also while the run goes on
  distill    RECIPE TEACHER_RUN ARCHIVE RUN    teach a small student
  estimate   RECIPE --gpus N --gpu h200        memory, hours, data rates and price of a pretrain run before it starts
  evaluate   TASK MODEL_RUN RUN                compare models on labels, beside baselines
  embed      MODEL_RUN ARCHIVE|RASTER OUT      embeddings of an archive's tiles, or of an image of any size
  embed      search INDEX --like WHAT          what lies in an embedded archive or image and looks alike
  sweep      PLAN ARCHIVE RUN                  many runs of one plan: scaling laws, objectives at equal budgets
  retrain    SCHEDULE                          new scenes -> archive -> champion trained further -> promoted only if better
  report     RUN...                            one HTML page about runs
  sensors    list | show NAME | check FILE     the known sensors; all that is wrong with one of your own
  submit     [--address URL] JOB ...           run a job on a Ray cluster through its job server
  submit     follow | status | stop SUBMISSION a job that was submitted
  manifest   JOB ... [--kind RayJob]           a job, a schedule or a cluster as YAML for Kubernetes

terraloom JOB --help says more. --json: the last line on standard output is the summary as JSON.
"""


def _submit(arguments: list[str]) -> dict[str, Any]:
    from cluster.submit import SubmitConfig, follow, job_server, status, stop, submit
    from jobs.arguments import parse

    names = {f"--{field.name.replace('_', '-')}" for field in fields(SubmitConfig)}
    own, arguments = _before_the_job(arguments, names)
    config = parse(SubmitConfig, own, "submit", "Run a job on a Ray cluster; these options stand before the job.")
    about = {"follow": follow, "status": status, "stop": stop}
    if arguments and arguments[0] in about:
        if len(arguments) != 2:
            raise InputError(f"expected 'terraloom submit [--address URL] {arguments[0]} SUBMISSION', as submit has named it")
        return about[arguments[0]](job_server(config.address), arguments[1])
    if not arguments or arguments[0] not in JOBS or arguments[0] in ON_THIS_MACHINE:
        raise InputError("nothing to submit; expected 'terraloom submit [--address URL] JOB ...' with a job and its arguments")
    return submit(arguments, config)


def _before_the_job(arguments: list[str], names: set[str]) -> tuple[list[str], list[str]]:
    """Return the options before the job, those called `names` with their values, and the job with what follows."""
    end = 0
    while end < len(arguments) and arguments[end].startswith("-"):
        end += 2 if arguments[end] in names else 1
    return arguments[:end], arguments[end:]


def _manifest(arguments: list[str]) -> dict[str, Any]:
    from cluster.manifest import ManifestConfig, manifest
    from jobs.arguments import parse

    about = "Write a job, a schedule or a cluster as YAML for Kubernetes. These options and the job's own may stand in any order."
    if not {"-h", "--help"}.isdisjoint(arguments):
        parse(ManifestConfig, ["--help"], "manifest JOB ...", about)
    own, others = _apart(arguments, {f"--{field.name.replace('_', '-')}" for field in fields(ManifestConfig)})
    if others and (others[0] not in JOBS or others[0] in ON_THIS_MACHINE):
        raise InputError(
            f"'{others[0]}' is no job; expected 'terraloom manifest JOB ... [--kind RayJob]' with a job and its arguments"
        )
    return {"manifest": manifest(parse(ManifestConfig, own, "manifest"), others)}


def _apart(arguments: list[str], names: set[str]) -> tuple[list[str], list[str]]:
    """Return the options called `names` with their values, and the arguments that are left.

    Views have a kind, too (--kind single): a manifest's begins with a capital.
    """
    own: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        words = [argument] if value or name not in names else [argument, *islice(rest, 1)]
        is_own = name in names and (name != "--kind" or (value or words[-1])[:1].isupper())
        (own if is_own else others).extend(words)
    return own, others


LISTING = {"pretrain", "distill", "sweep"}
"""Alone they list what they can do."""
ON_THIS_MACHINE = {"submit", "manifest"}
JOBS = {
    **data_commands.COMMANDS,
    **model_commands.COMMANDS,
    **sweep_commands.COMMANDS,
    **retrain_commands.COMMANDS,
    "submit": _submit,
    "manifest": _manifest,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one job and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    wants_json = "--json" in arguments
    arguments = [a for a in arguments if a != "--json"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        raise SystemExit(0 if arguments else 2)
    if len(arguments) == 1 and arguments[0] in LISTING:
        arguments.append("--help")
    output = sys.stdout
    if arguments[0] != "submit" and {"-h", "--help"}.isdisjoint(arguments):
        # The output is the summary alone: Ray prints notices about its cluster to standard output, until the process ends.
        sys.stdout = sys.stderr
    try:
        if arguments[0] not in JOBS:
            raise InputError(f"job '{arguments[0]}' is unknown (known: {', '.join(JOBS)}); see terraloom --help")
        with read_by_people(), told(arguments[0]):
            summary = JOBS[arguments[0]](arguments[1:])
    except (InputError, ModelInputError) as error:
        print(f"terraloom: {_first_cause(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RunFailed, ClusterGone) as error:
        print(f"terraloom: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if wants_json:
        print(json.dumps(summary, default=str), file=output, flush=True)
    else:
        from jobs.show import show

        show(summary, output)
    raise SystemExit(int(summary.get("exit_status", 0)))


@contextmanager
def read_by_people() -> Iterator[None]:
    """Let whoever reads the output stop (`--help | head`): that is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if sys.stdout is not sys.__stdout__:  # a job's own trouble: its output goes elsewhere
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
        raise SystemExit(0) from None


def _first_cause(error: Exception) -> str:
    # Errors from Ray tasks carry the original as `cause`; their own text is a traceback.
    return str(getattr(error, "cause", None) or error)


if __name__ == "__main__":
    main()
