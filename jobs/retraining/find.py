"""Which scenes have come: those that neither the archive nor a round knows, and those whose files were replaced."""

from collections.abc import Sequence

from jobs.coregister import stamps_of
from jobs.retraining.rounds import Round
from pipeline.archive import open_archive
from pipeline.stac import read_scenes


def new_scenes(scenes_url: str, archive_url: str, rounds: Sequence[Round]) -> dict[str, dict[str, str | None]]:
    """Return {scene id: {file: what tells it from a replaced one}} of the scenes that are new."""
    records = open_archive(archive_url).scene_records()
    given, _ = read_scenes(scenes_url)
    known = {name: record.get("files", {}) for name, record in records.items()}
    for earlier in rounds:
        known |= earlier.scenes
    stamps = stamps_of(given, [], records)
    found = {scene.id: {href: stamps[href] for href in scene.hrefs} for scene in given}
    return {name: files for name, files in sorted(found.items()) if name not in known or known[name] != files}
