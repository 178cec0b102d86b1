"""terraloom retrain SCHEDULE: new scenes -> archive -> drift -> continue the champion -> compare -> promote only if better.

One at a time: a lock in the schedule's folder. A round that was killed goes on with the stage that it was in.
"""

import getpass
import os
import socket
from collections.abc import Callable
from typing import Any

from cluster.connect import connect
from cluster.lease import Lease, holder_of, holding
from cluster.registries import open_registry
from cluster.registry import Registry, Version
from cluster.run import require_run
from jobs.retraining.compare import compare
from jobs.retraining.context import Context
from jobs.retraining.decide import decide, registered
from jobs.retraining.drift import drift
from jobs.retraining.extend import extend
from jobs.retraining.find import new_scenes
from jobs.retraining.rounds import STAGES, Round, Rounds
from jobs.retraining.schedule import Schedule, read_schedule
from jobs.retraining.train import train
from pipeline import storage

WORK: dict[str, Callable[[Context], dict[str, Any]]] = {
    "extend": extend,
    "drift": drift,
    "train": train,
    "compare": compare,
    "decide": decide,
}


def retrain(schedule_url: str) -> dict[str, Any]:
    """Run the next round, or the one that was begun, to its end; say how it ended, or that there is nothing new."""
    schedule = read_schedule(schedule_url)
    connect()
    with _only_one(schedule) as lease:
        registry = _registry(schedule)
        champion = registry.champion() or _first(schedule, registry)
        rounds = Rounds(schedule)
        rounds.require_suite()
        round = rounds.unfinished()
        if round is None:
            found = new_scenes(schedule.scenes, schedule.archive, rounds.all())
            if len(found) < schedule.min_scenes:
                facts = {"outcome": "nothing new", "scenes": len(found), "champion": champion.number, "model": champion.model}
                return {"job": "retrain", **facts}
            round = rounds.begin(found, champion.number)
        earlier = tuple(other for other in rounds.all() if other.number < round.number)
        context = Context(schedule, registry, registry.version(round.about["champion"]), earlier, round)
        for stage in STAGES:
            if round.result(stage) is None and not _is_left_out(stage, round):
                finish(context, stage, lease)
        return _summary(context)


def finish(context: Context, stage: str, lease: Lease) -> None:
    """Do a stage and write down what it found, unless somebody else has the lock by now."""
    lease.require()
    result = WORK[stage](context)
    lease.require()
    context.round.finish(stage, result)


def status(schedule_url: str) -> dict[str, Any]:
    """Return who is champion and why, how each round ended or how far it is, and who is at it."""
    schedule = read_schedule(schedule_url)
    registry = _registry(schedule)
    champion, history = registry.champion(), registry.history()
    return {
        "job": "retrain",
        "champion": champion.number if champion else None,
        "model": champion.model if champion else None,
        "held_by": holder_of(_lock(schedule)),
        "history": [vars(change) for change in history],
        "rounds": [_state(round) for round in Rounds(schedule).all()],
    }


def roll_back(schedule_url: str, reason: str) -> dict[str, Any]:
    """Make the version before the present champion champion again; the scenes that led to the present one are trusted no more."""
    schedule = read_schedule(schedule_url)
    with _only_one(schedule):
        registry = _registry(schedule)
        change = registry.roll_back(reason)
    return {"job": "retrain", "outcome": "rolled back", **vars(change), "model": registry.version(change.number).model}


def _is_left_out(stage: str, round: Round) -> bool:
    """Return whether an earlier stage has left nothing to do for this one."""
    if stage in ("drift", "train", "compare") and not (round.result("extend") or {})["train_tiles"]:
        return True
    return stage == "compare" and "failed" in (round.result("train") or {})


def _first(schedule: Schedule, registry: Registry) -> Version:
    run = require_run(schedule.champion, "pretrain", "model/config.json")
    version = registered(registry, run.url, {})
    registry.promote(version.number, None, "the first")
    return version


def _registry(schedule: Schedule) -> Registry:
    folder = storage.join(schedule.folder, "registry")
    return open_registry(schedule.registry or folder, folder)


def _lock(schedule: Schedule) -> str:
    return storage.join(schedule.folder, "lock")


def _only_one(schedule: Schedule) -> Any:
    return holding(_lock(schedule), f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}")


def _state(round: Round) -> dict[str, Any]:
    ended = round.result("decide")
    if ended is None:
        waiting = next(stage for stage in STAGES if round.result(stage) is None and not _may_be_left_out(stage, round))
        return {"round": round.number, "outcome": None, "stage": waiting}
    drifted = (round.result("drift") or {}).get("word")
    return {
        "round": round.number,
        "outcome": ended["outcome"],
        "reason": ended["reason"],
        "scenes": len(round.scenes),
        "drift": drifted,
    }


def _may_be_left_out(stage: str, round: Round) -> bool:
    return round.result("extend") is not None and _is_left_out(stage, round)


def _summary(context: Context) -> dict[str, Any]:
    champion = context.registry.champion()
    compared = {name: context.done("compare").get(name) for name in ("suite_digest", "lines")}
    return {
        "job": "retrain",
        **_state(context.round),
        "folder": context.round.url,
        "champion": champion.number if champion else None,
        "model": champion.model if champion else None,
        **compared,
    }
