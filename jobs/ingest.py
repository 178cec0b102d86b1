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
from pipeline.grid import Grid

PLACES_PER_SHARD = 16


@ray.remote(num_cpus=TASK_CPUS)
def _write_shard(archive: Archive, layout: str, folder: str, shard: str, split: str, places: list[str], inputs: str) -> int:
    module = load_layout(layout)
    tiles = [tile for place in places for tile in module.tiles(folder, place, archive.grid)]
    return archive.publish(shard, split, tiles, inputs)


def ingest(layout: str, folder: str, archive_url: str, grid: Grid) -> dict[str, Any]:
    """Add the chips of one layout. A place goes to one split; places stay together in a shard."""
    module = load_layout(layout)
    places = module.places(folder)
    archive = create_archive(archive_url, grid, module.sensors(), module.LABELS)
    by_split: dict[str, list[str]] = defaultdict(list)
    for place, split in split_places(places).items():
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
    written = sum(num_tiles > 0 for _, num_tiles in gather(tasks, f"ingest {layout}"))
    stale = [shard for shard in made if re.fullmatch(rf"{layout}_[a-z]+_\d+", shard) and shard not in wanted]
    for shard in stale:
        archive.withdraw(shard)
    write_statistics(archive)
    return {
        "archive": archive.url,
        "layout": layout,
        "places": len(places),
        "shards_written": written,
        "shards_withdrawn": len(stale),
        "shards_up_to_date": len(wanted) - len(tasks),
        "digest": archive.digest(),
        **inventory(archive),
    }
