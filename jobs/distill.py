"""terraloom distill RECIPE TEACHER_RUN ARCHIVE RUN: teach a small encoder what a pretrained one knows."""

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from cluster.job import Job
from cluster.run import Run, require_run
from cluster.training import train
from models.encoder import Encoder
from models.sensor import SensorSpec
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError


def distill(recipe_name: str, recipe: Any, teacher_url: str, archive: str, run_url: str) -> dict[str, Any]:
    """Distil the encoder of a finished `pretrain` run; goes on where it was interrupted."""
    run, archive = Run(run_url, "distill"), storage.absolute(archive)
    teacher_run = require_run(teacher_url, "pretrain", "model/config.json")
    open_archive(archive)
    inputs = {"recipe": recipe_name, "teacher": teacher_run.url, "archive": archive}
    if finished := run.begin(recipe, inputs):
        return finished
    facts = train(
        Job(
            run_url=run.url,
            archive_url=archive,
            name="distill",
            config=recipe.train,
            build=build(recipe, teacher_run.path("model")),
            extra={"recipe": recipe_name, "teacher": teacher_run.url, "settings": asdict(recipe)},
        )
    )
    teacher, student = load_encoder(teacher_run.path("model")), load_encoder(run.path("model"))
    sizes = {
        "teacher_parameters": teacher.num_parameters,
        "teacher_active_parameters": teacher.num_active_parameters,
        "student_parameters": student.num_parameters,
        "times_smaller": round(teacher.num_parameters / student.num_parameters, 1),
        "times_smaller_active": round(teacher.num_active_parameters / student.num_parameters, 1),
    }
    others = {name: run.path("models", name) for name in storage.names(run.path("models"))}
    return run.finish({"recipe": recipe_name, **inputs, "model": run.path("model"), "models": others, **sizes, **facts})


def load_encoder(model_url: str) -> Encoder:
    """Load an encoder from a local or `s3://` model folder."""
    with storage.local_copy(model_url) as folder, torch.device("cpu"):  # whatever device a model is being built on
        return Encoder.load(folder)


def model_folder(teacher: str) -> str:
    """Return the model folder of a finished run, or of its model, local or `s3://`; raise InputError without a model."""
    url = storage.absolute(teacher)
    for model in (storage.join(url, "model"), url):
        if storage.exists(storage.join(model, "model.safetensors")):
            return model
    raise InputError(
        f"teacher '{url}' holds no model (neither model/model.safetensors nor model.safetensors); "
        f"give the folder of a finished run or of its model"
    )


def build(recipe: Any, model_url: str) -> Any:
    """Return a function that makes the objective of `recipe` with the teacher at `model_url`."""
    return partial(_build, recipe, model_url)


def _build(recipe: Any, teacher_url: str, sensors: tuple[SensorSpec, ...], generator: torch.Generator) -> nn.Module:
    return recipe.build(sensors, load_encoder(teacher_url), generator)
