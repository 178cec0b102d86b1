"""terraloom pretrain RECIPE ARCHIVE RUN: train a foundation model on an archive."""

from dataclasses import asdict
from typing import Any

from cluster.job import Job
from cluster.run import Run
from cluster.training import train
from pipeline import storage


def pretrain(recipe_name: str, recipe: Any, archive: str, run_url: str) -> dict[str, Any]:
    """Train `recipe` on the archive; a run that was interrupted goes on, a finished one is only reported."""
    run = Run(run_url, "pretrain")
    archive = storage.absolute(archive)
    if hasattr(recipe, "located"):  # it needs more than the archive, such as a teacher
        recipe = recipe.located()
    if finished := run.begin(recipe, {"recipe": recipe_name, "archive": archive}):
        return finished
    facts = train(
        Job(
            run_url=run.url,
            archive_url=archive,
            name="pretrain",
            config=recipe.train,
            build=recipe.build,
            extra={"recipe": recipe_name, "settings": asdict(recipe)},
        )
    )
    return run.finish({"recipe": recipe_name, "archive": archive, "model": run.path("model"), **facts})
