"""terraloom ingest LAYOUT FOLDER ARCHIVE: ready-made chips, with or without a CRS, into the same kind of archive."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import ray

from cluster.connect import connect
from cluster.counters import count
from jobs.archives import TASK_CPUS, inventory, write_statistics
from jobs.progress import gather
from pipeline import storage
from pipeline.archive import Archive, create_archive
from pipeline.datasets import load_layout
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.splits import split_places

PLACES_PER_SHARD = 16


@ray.remote(num_cpus=TASK_CPUS)
def _write_shard(
    archive: Archive, layout: str, shard: str, split: str, places: dict[str, Any], inputs: str
) -> tuple[int, dict[str, str], int]:
    """Write a shard without the places that cannot be read; return its tiles, {place: reason}, and places without tiles."""
    module, tiles = load_layout(layout), []
    refused: dict[str, str] = {}
    empty = 0
    for place, found in places.items():
        try:
            made = module.tiles(place, found, archive.grid)
        except InputError as error:
            refused[place] = str(error)
        else:
            tiles += made
            empty += not made
    # A shard that lacks a place is not up to date: the next run tries again.
    return archive.publish(shard, split, tiles, "incomplete" if refused else inputs), refused, empty


def ingest(layout: str, folder: str, archive_url: str, grid: Grid) -> dict[str, Any]:
    """Add the chips of one layout. A place goes to one split; places stay together in a shard."""
    module, folder = load_layout(layout), storage.absolute(folder)
    places = module.places(folder)
    splits = module.splits(folder, places) if hasattr(module, "splits") else split_places(places)
    connect()
    archive = create_archive(archive_url, grid, module.sensors(), module.LABELS)
    tasks, made, wanted = {}, archive.inputs(), set()
    for shard, split, chosen in _shards(layout, splits, getattr(module, "PLACES_PER_SHARD", PLACES_PER_SHARD)):
        inputs = hashlib.sha256(json.dumps([layout, folder, split, chosen]).encode()).hexdigest()
        wanted.add(shard)
        if made.get(shard) != inputs:
            tasks[_write_shard.remote(archive, layout, shard, split, {place: places[place] for place in chosen}, inputs)] = shard
    written = empty = 0
    refused: dict[str, str] = {}
    for _, (num_tiles, unreadable, without) in gather(tasks, f"ingest {layout}"):
        count("tiles", num_tiles, job="ingest")
        written += num_tiles > 0
        refused |= unreadable
        empty += without
    if len(refused) == len(splits):
        reasons = "; ".join(list(refused.values())[:3])
        hint = "" if archive.published() else f"; '{archive_url}' is empty still: remove it to begin it with another site size"
        raise InputError(f"none of the {len(splits)} places in '{folder}' can be read: {reasons}{hint}")
    stale = [shard for shard in made if re.fullmatch(rf"{layout}_[a-z]+_\d+", shard) and shard not in wanted]
    for shard in stale:
        archive.withdraw(shard)
    write_statistics(archive)
    return {
        "archive": archive.url,
        "layout": layout,
        "places": len(splits) - len(refused),
        "places_left_out": len(places) - len(splits),
        "places_without_tiles": empty,
        "refused": refused,
        "shards_written": written,
        "shards_withdrawn": len(stale),
        "shards_up_to_date": len(wanted) - len(tasks),
        "digest": archive.digest(),
        **inventory(archive),
    }


def _shards(layout: str, splits: dict[str, str], largest: int) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (shard, split, places); small splits have several shards too, so that readers can share them."""
    by_split: dict[str, list[str]] = defaultdict(list)
    for place in sorted(splits):
        by_split[splits[place]].append(place)
    for split, members in by_split.items():
        size = min(largest, max(1, len(members) // 4))
        for number, first in enumerate(range(0, len(members), size)):
            yield f"{layout}_{split}_{number}", split, members[first : first + size]
