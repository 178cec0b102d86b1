"""terraloom distill RECIPE TEACHER_RUN ARCHIVE RUN: teach a small encoder what a pretrained one knows."""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from cluster.job import Job
from cluster.run import Run, require_run
from cluster.training import train
from models.encoder import Encoder
from models.remote import WEIGHTS, digest_of
from models.sensor import SensorSpec
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.augment import AugmentConfig
from pipeline.errors import InputError
from pipeline.features import features_url, require_features


def distill(recipe_name: str, recipe: Any, teacher_url: str, archive: str, run_url: str) -> dict[str, Any]:
    """Distil the encoder of a finished `pretrain` run; goes on where it was interrupted."""
    run, archive = Run(run_url, "distill"), storage.absolute(archive)
    teacher_run = require_run(teacher_url, "pretrain", "model/config.json")
    open_archive(archive)
    inputs = {"recipe": recipe_name, "teacher": teacher_run.url, "archive": archive}
    if finished := run.begin(recipe, inputs):
        return finished
    settings = replace(recipe.train, sensor_sets=recipe.train.sensor_sets or _sets(recipe))
    if recipe.precomputed:
        settings = replace(settings, features=_features(recipe, teacher_run.path("model"), archive))
    facts = train(
        Job(
            run_url=run.url,
            archive_url=archive,
            name="distill",
            config=settings,
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


def _sets(recipe: Any) -> tuple[tuple[str, ...], ...]:
    """Return what samples hold of a student of some sensors: what it is taught by besides, or each alone."""
    if recipe.sensors and recipe.taught_by:
        return (tuple(sorted({*recipe.sensors, *recipe.taught_by})),)
    return tuple((sensor,) for sensor in recipe.sensors)


def _features(recipe: Any, model_url: str, archive_url: str) -> str:
    """Return the folder of the teacher's features, having checked that they are of the tiles as they will come."""
    archive, stream = open_archive(archive_url), recipe.train.stream
    if stream.crops or stream.sizes_m or stream.augment != replace(AugmentConfig(), symmetries=False):
        raise InputError(
            "precomputed features are of whole tiles as they are, but tiles are turned, cropped or changed in light; "
            "give --symmetries False and no other augmentation"
        )
    url = features_url(archive, model_digest(model_url))
    require_features(url, archive, sorted({*recipe.sensors, *recipe.taught_by}))
    return url


def model_digest(model_url: str) -> str:
    """Return the SHA-256 of a model's weights."""
    with storage.local_copy(model_url) as folder:
        return digest_of(folder / WEIGHTS)


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
