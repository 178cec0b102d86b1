"""The end of a round: its challenger becomes champion or does not, and why is written down."""

import tempfile
from pathlib import Path
from typing import Any

from cluster.registry import Registry, Version
from cluster.start import save_weights
from jobs.retraining.context import Context
from jobs.retraining.verdict import Verdict, verdict_of
from jobs.start import weights_of
from pipeline import storage
from pipeline.errors import InputError


def decide(context: Context) -> dict[str, Any]:
    """Register and promote the challenger if the comparison says so; doing it again changes nothing."""
    verdict = _verdict(context)
    version = None
    outcome = "declined"
    if verdict.is_promoted:
        facts = {"round": context.round.number, "started_from": context.champion.number, "lines": context.done("compare")["lines"]}
        version = registered(context.registry, context.round.path("run"), facts).number
        outcome, reason = _promote(context, version, verdict.reason)
        verdict = Verdict(outcome == "promoted", False, reason)
    return {"outcome": outcome, "reason": verdict.reason, "version": version, "is_suspect": verdict.is_suspect}


def _verdict(context: Context) -> Verdict:
    extended, trained = context.done("extend"), context.done("train")
    if not extended["train_tiles"]:
        return Verdict(False, False, f"none of the {extended['scenes']} new scenes gave a tile to train on")
    if "failed" in trained:
        return Verdict(False, True, f"its training failed: {trained['failed']}")
    return verdict_of(context.done("compare")["lines"], context.schedule.suite.target)


def _promote(context: Context, number: int, reason: str) -> tuple[str, str]:
    now = context.registry.champion()
    if now and now.number == number:
        return "promoted", reason  # before this round was killed
    try:
        context.registry.promote(number, context.champion.number, reason)
    except InputError as error:
        return "overtaken", str(error)
    return "promoted", reason


def registered(registry: Registry, run_url: str, facts: dict[str, Any]) -> Version:
    """Return the version of a run, which is registered with all its weights if it is not yet."""
    for version in registry.versions():
        if version.facts.get("run") == run_url:
            return version
    with tempfile.TemporaryDirectory() as folder, storage.local_copy(storage.join(run_url, "model")) as model:
        whole = Path(folder)
        (whole / "model").mkdir()
        for path in model.iterdir():
            if path.is_file():
                (whole / "model" / path.name).write_bytes(path.read_bytes())
        (whole / "config.json").write_bytes(storage.read_bytes(storage.join(run_url, "config.json")))
        save_weights(whole, weights_of(run_url)[1])
        return registry.register(folder, {"run": run_url, **facts})
