"""terraloom export RUN MODEL: the encoder of a run that still goes on, of a checkpoint that was kept, or of a finished model."""

from typing import Any

from cluster.checkpoints import checkpoint_url
from cluster.consolidate import consolidate
from cluster.graphs import Format, described, real_tiles, require_formats, write_graphs
from cluster.job import Job
from cluster.run import Run
from cluster.start import FOLDER, WEIGHTS
from jobs.card import model_card
from jobs.distill import build as build_student
from jobs.distill import load_encoder
from jobs.recipes import load_recipe
from models.config import updated
from models.encoder import Encoder
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError

GRAPHS = "graphs.json"


def export(
    run_url: str,
    model: str,
    step: int | None = None,
    formats: tuple[Format, ...] = ("safetensors",),
    data: str | None = None,
    scores: str | None = None,
    licence: str | None = None,
) -> dict[str, Any]:
    """Write an encoder as safetensors and JSON with its model card, and as graphs in `formats`.

    `run_url`: a run, of which the last whole checkpoint is taken or the kept one of `step`; or a finished model inside one.
    data: the archive whose tiles graphs are compared on; scores: an evaluate run for the card.
    """
    run, encoder, taken = _encoder_of(run_url, step)
    config = storage.read_json(run.path("config.json"))
    archive = open_archive(data or config["inputs"]["archive"])
    summary = storage.read_json(_summary_of(scores)) if scores else None
    require_formats(formats, encoder)
    counts = archive.tiles(archive.published())["sensor"].value_counts().sort_index()
    model = storage.absolute(model)
    with storage.staged_folder(model) as folder:
        encoder.save(folder, {"run": run.url, "step": taken})
        graphs: list[dict[str, Any]] = []
        if set(formats) - {"safetensors"}:
            tiles = {spec.name: real_tiles(archive, spec.name) for spec in encoder.config.sensors}
            graphs = write_graphs(encoder, tiles, folder, formats)
            storage.write_json(str(folder / GRAPHS), {"sensors": described(encoder, tiles), "files": graphs})
        tiles_of = {str(name): int(count) for name, count in counts.items()}
        card = model_card(encoder, config, taken, archive, tiles_of, graphs, summary, licence)
        (folder / "README.md").write_text(card)
    return {"job": "export", "run": run.url, "step": taken, "model": model, "graphs": graphs}


def _encoder_of(url: str, step: int | None) -> tuple[Run, Encoder, int]:
    """Return the run, its encoder and how many steps it has taken."""
    run = Run(url, "export")
    if storage.exists(run.path("model.safetensors")):
        inside = run.url
        while not storage.exists((run := Run(inside.rpartition("/")[0], "export")).path("config.json")):
            if (inside := run.url).count("/") < 2:
                raise InputError(f"'{url}' lies in no run; give the folder of a pretrain or distill run, or a model inside one")
        steps = storage.read_json(run.path("config.json"))["config"]["train"]["num_steps"]
        return run, load_encoder(storage.absolute(url)), int(steps)
    if not storage.exists(run.path("config.json")):
        raise InputError(f"'{run.url}' is no run; give the folder of a pretrain or distill run")
    trained, taken = consolidate(job_of(run), checkpoint_url(run, step))
    return run, trained.encoder.eval(), taken


def _summary_of(scores: str) -> str:
    url = storage.join(storage.absolute(scores), "summary.json")
    if not storage.exists(url):
        raise InputError(f"'{scores}' has no summary.json; give the folder of a finished evaluate run")
    return url


def job_of(run: Run) -> Job:
    """Return what the run executes, from what it wrote down when it began."""
    written = storage.read_json(run.path("config.json"))
    name, inputs = written["job"], written["inputs"]
    if name not in ("pretrain", "distill"):
        raise InputError(f"'{run.url}' is a run of '{name}', expected one of pretrain or distill")
    recipe = updated(load_recipe(name, inputs["recipe"]), written["config"])
    build = recipe.build if name == "pretrain" else build_student(recipe, storage.join(inputs["teacher"], "model"))
    start = run.path(FOLDER) if storage.exists(run.path(FOLDER, WEIGHTS)) else ""
    return Job(run.url, inputs["archive"], name, recipe.train, build, {}, start)
