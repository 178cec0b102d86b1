"""terraloom export RUN MODEL: the encoder of a run that is still going on, or of a checkpoint that was kept."""

from typing import Any

from cluster.consolidate import consolidate
from cluster.host import checkpoint_url
from cluster.job import Job
from cluster.run import Run
from jobs.distill import build as build_student
from jobs.recipes import load_recipe
from models.config import updated
from pipeline import storage
from pipeline.errors import InputError


def export(run_url: str, model: str, step: int | None = None) -> dict[str, Any]:
    """Write the encoder of the run's last whole checkpoint, or of the kept one of `step`, as safetensors and JSON."""
    run = Run(run_url, "export")
    if not storage.exists(run.path("config.json")):
        raise InputError(f"'{run.url}' is no run; give the folder of a pretrain or distill run")
    checkpoint = checkpoint_url(run, step)
    trained, taken = consolidate(_job_of(run), checkpoint)
    model = storage.absolute(model)
    with storage.staged_folder(model) as folder:
        trained.encoder.save(folder, {"run": run.url, "step": taken})
    return {"job": "export", "run": run.url, "checkpoint": checkpoint, "step": taken, "model": model}


def _job_of(run: Run) -> Job:
    """Return what the run executes, from what it wrote down when it began."""
    written = storage.read_json(run.path("config.json"))
    name, inputs = written["job"], written["inputs"]
    if name not in ("pretrain", "distill"):
        raise InputError(f"'{run.url}' is a run of '{name}', expected one of pretrain or distill")
    recipe = updated(load_recipe(name, inputs["recipe"]), written["config"])
    build = recipe.build if name == "pretrain" else build_student(recipe, storage.join(inputs["teacher"], "model"))
    return Job(run.url, inputs["archive"], name, recipe.train, build, {})
