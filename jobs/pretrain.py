"""terraloom pretrain RECIPE ARCHIVE RUN: train a foundation model on an archive."""

from dataclasses import asdict
from typing import Any

from cluster.job import Job
from cluster.run import Run
from cluster.training import train
from jobs.start import start_of
from pipeline import storage


def pretrain(recipe_name: str, recipe: Any, archive: str, run_url: str, start_from: str | None = None) -> dict[str, Any]:
    """Train `recipe` on the archive; a run that was interrupted goes on, a finished one is only reported.

    `start_from`: a run or a model, whose weights it begins with.
    """
    run = Run(run_url, "pretrain")
    archive = storage.absolute(archive)
    if hasattr(recipe, "located"):  # it needs more than the archive, such as a teacher
        recipe = recipe.located()
    inputs = {"recipe": recipe_name, "archive": archive} | ({"start_from": storage.absolute(start_from)} if start_from else {})
    if finished := run.begin(recipe, inputs):
        return finished
    facts = train(
        Job(
            run_url=run.url,
            archive_url=archive,
            name="pretrain",
            config=recipe.train,
            build=recipe.build,
            extra={"recipe": recipe_name, "settings": asdict(recipe)},
            start=start_of(run, inputs["start_from"]) if start_from else "",
        )
    )
    return run.finish({**inputs, "model": run.path("model"), **facts})
