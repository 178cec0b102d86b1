"""The archive grows by a round's scenes; the suite's places stay out of what is trained on."""

from typing import Any

from jobs.coregister import coregister
from jobs.evaluation.overlap import by_ground
from jobs.retraining.context import Context
from pipeline.archive import Archive, open_archive
from pipeline.errors import InputError


def extend(context: Context) -> dict[str, Any]:
    """Put the round's scenes into the archive; return how many tiles of them can be trained on."""
    schedule, scenes = context.schedule, frozenset(context.round.scenes)
    grid = open_archive(schedule.archive).grid
    done = coregister(schedule.scenes, schedule.archive, grid, schedule.registration, schedule.labels, scenes)
    archive = open_archive(schedule.archive)
    require_unseen(archive, open_archive(schedule.suite.archive))
    catalog = archive.catalog()
    trained = catalog[catalog["scene"].isin(scenes) & (catalog["split"] == "train")]
    return {
        "archive_digest": done["digest"],
        "scenes": len(scenes),
        "refused": done["refused"],
        "train_tiles": {str(name): int(count) for name, count in trained["sensor"].value_counts().sort_index().items()},
    }


def require_unseen(archive: Archive, suite: Archive) -> None:
    """Raise InputError where test places of the suite are trained on: it would measure what was learned by heart."""
    seen, tests = archive.catalog(), suite.catalog()
    tests = tests[tests["split"] == "test"].reset_index(drop=True)
    found = by_ground(seen[seen["split"] == "train"], tests.assign(sample=tests.index))
    if found:
        raise InputError(
            f"of suite '{suite.url}' {found} ('{archive.url}'); make the suite on the archive's grid, or of other places"
        )
