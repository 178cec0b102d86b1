"""The challenger: the champion trained further on new scenes and a share of old samples."""

from dataclasses import replace
from typing import Any

from jobs.pretrain import pretrain
from jobs.retraining.context import Context
from pipeline import storage
from pipeline.errors import RunFailed


def train(context: Context) -> dict[str, Any]:
    """Train the round's challenger; that it failed by itself, as of broken pixels, is a result, too."""
    schedule, round = context.schedule, context.round
    new, withheld = context.scenes()
    storage.write_json(round.path("scenes.json"), {"new": new, "withheld": withheld})
    recipe = schedule.configured()
    settings = {"new_scenes": round.path("scenes.json"), "replay": schedule.replay, "seed": recipe.train.seed + round.number}
    recipe = replace(recipe, train=replace(recipe.train, **settings))
    try:
        done = pretrain(schedule.recipe, recipe, schedule.archive, round.path("run"), context.champion.model)
    except RunFailed as failure:  # written down by the run, which would say the same again
        return {"failed": str(failure)}
    samples = storage.read_json(storage.join(round.path("run"), "replay.json"))
    kept = {name: samples[name] for name in ("new_samples", "old_samples", "keep")}
    return {"run": done["run"], "model": done["model"], "steps": done["steps"], "withheld": len(withheld), **kept}
