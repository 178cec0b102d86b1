"""terraloom repair ARCHIVE: publish again what whole shards say of themselves, hide damaged ones, list what is lost."""

from typing import Any

import ray

from jobs.archives import TASK_CPUS, write_statistics
from jobs.progress import gather
from pipeline import storage
from pipeline.archive import Archive, DamagedShard, open_archive


@ray.remote(num_cpus=TASK_CPUS)
def _republish(archive: Archive, shard: str) -> bool | str:
    try:
        return archive.republish(shard)
    except DamagedShard as error:  # and not a store that cannot be reached
        archive.hide(shard)
        return str(error)


def repair(url: str) -> dict[str, Any]:
    """Make the catalog anew from the shards. What is lost comes back when the job that wrote it is run again.

    Nothing is guessed: a shard counts only if its every byte has the checksum that it carries. What killed writers left
    staged is removed once it is an hour old, as a younger one may still be written.
    """
    archive = open_archive(url)
    present = [name.removesuffix(".zarr") for name in storage.names(storage.join(url, "shards")) if not name.startswith(".")]
    shared = ray.put(archive)
    tasks = {_republish.remote(shared, shard): shard for shard in sorted({*present, *archive.published()})}
    found = dict(gather(tasks, "repair"))
    lost = {shard: reason for shard, reason in sorted(found.items()) if isinstance(reason, str)}
    stale = [
        storage.remove_stale(storage.join(url, folder))
        for folder in ("", "shards", "catalog", "empty", "sensors", "labels", "reports")
    ]
    if len(lost) < len(found):
        write_statistics(archive)
    return {
        "archive": archive.url,
        "shards": len(found) - len(lost),
        "republished": sum(result is True for result in found.values()),
        "lost": lost,
        "leftovers_removed": sum(removed for removed, _ in stale),
        "leftovers_too_young": sum(young for _, young in stale),
    }
