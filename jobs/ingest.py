"""terraloom ingest LAYOUT FOLDER ARCHIVE: ready-made chips, with or without a CRS, into the same kind of archive."""

import hashlib
import json
import re
from collections import defaultdict
from typing import Any

import ray

from jobs.archives import TASK_CPUS, inventory, write_statistics
from jobs.progress import gather
from pipeline.archive import Archive, create_archive
from pipeline.chips import split_places
from pipeline.datasets import load_layout
from pipeline.errors import InputError
from pipeline.grid import Grid

PLACES_PER_SHARD = 16


@ray.remote(num_cpus=TASK_CPUS)
def _write_shard(
    archive: Archive, layout: str, folder: str, shard: str, split: str, places: list[str], inputs: str
) -> tuple[int, dict[str, str]]:
    """Write the shard without the places that cannot be read; return its tiles and {place: reason} of those."""
    module, tiles = load_layout(layout), []
    refused: dict[str, str] = {}
    for place in places:
        try:
            tiles += module.tiles(folder, place, archive.grid)
        except InputError as error:
            refused[place] = str(error)
    # A shard that lacks a place is not up to date: the next run tries again.
    return archive.publish(shard, split, tiles, "incomplete" if refused else inputs), refused


def ingest(layout: str, folder: str, archive_url: str, grid: Grid) -> dict[str, Any]:
    """Add the chips of one layout. A place goes to one split; places stay together in a shard."""
    module = load_layout(layout)
    places = module.places(folder)
    archive = create_archive(archive_url, grid, module.sensors(), module.LABELS)
    by_split: dict[str, list[str]] = defaultdict(list)
    official = module.splits(folder) if hasattr(module, "splits") else {}
    for place, split in (official or split_places(places)).items():
        by_split[split].append(place)
    tasks, made, wanted = {}, archive.inputs(), set()
    for split, members in by_split.items():
        size = min(PLACES_PER_SHARD, max(1, len(members) // 4))
        for number, first in enumerate(range(0, len(members), size)):
            chosen, shard = sorted(members[first : first + size]), f"{layout}_{split}_{number}"
            inputs = hashlib.sha256(json.dumps([layout, folder, split, chosen]).encode()).hexdigest()
            wanted.add(shard)
            if made.get(shard) != inputs:
                tasks[_write_shard.remote(archive, layout, folder, shard, split, chosen, inputs)] = shard
    written = 0
    refused: dict[str, str] = {}
    for _, (num_tiles, unreadable) in gather(tasks, f"ingest {layout}"):
        written += num_tiles > 0
        refused |= unreadable
    if len(refused) == len(places):
        raise InputError(f"none of the {len(places)} places in '{folder}' can be read: {'; '.join(list(refused.values())[:3])}")
    stale = [shard for shard in made if re.fullmatch(rf"{layout}_[a-z]+_\d+", shard) and shard not in wanted]
    for shard in stale:
        archive.withdraw(shard)
    write_statistics(archive)
    return {
        "archive": archive.url,
        "layout": layout,
        "places": len(places) - len(refused),
        "refused": refused,
        "shards_written": written,
        "shards_withdrawn": len(stale),
        "shards_up_to_date": len(wanted) - len(tasks),
        "digest": archive.digest(),
        **inventory(archive),
    }
