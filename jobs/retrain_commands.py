"""The command `retrain`: a round, what was, or the way back."""

from dataclasses import dataclass
from typing import Any

from tyro.conf import Positional

from jobs.arguments import parse
from pipeline.errors import InputError


@dataclass(frozen=True)
class Retrain:
    """Train the champion further on scenes that have come; the result replaces it only if it is better. Killed, it goes on."""

    schedule: Positional[str]
    """YAML file, see docs/jobs/retrain.md; local or s3://."""
    status: bool = False
    """Only say who is champion and why, and how each round ended."""
    rollback: str | None = None
    """Why the champion before the present one is to be champion again."""


def retrain_command(arguments: list[str]) -> dict[str, Any]:
    from jobs.retrain import retrain, roll_back, status

    if "--status" in arguments:  # the one switch among options that all take a value
        after = arguments.index("--status") + 1
        arguments = arguments[:after] + ["True"] * (arguments[after : after + 1] not in (["True"], ["False"])) + arguments[after:]
    options = parse(Retrain, arguments, "retrain")
    if options.status and options.rollback:
        raise InputError("--status changes nothing, --rollback does; give one of them")
    if options.rollback:
        return roll_back(options.schedule, options.rollback)
    return status(options.schedule) if options.status else retrain(options.schedule)


COMMANDS = {"retrain": retrain_command}
