"""terraloom coregister SCENES ARCHIVE: register scenes to each other and cut them into an archive, as Ray tasks."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
from shapely import STRtree

from cluster.counters import count
from jobs.archives import TASK_CPUS, inventory, write_statistics
from jobs.progress import gather
from jobs.registration_report import followed, save_report
from pipeline import storage
from pipeline.alignment import UNMOVED, Alignment, unaligned
from pipeline.archive import NUM_READERS, Archive, create_archive, is_archive, open_archive
from pipeline.coregister import (
    Comparison,
    CoregisterConfig,
    LabelRaster,
    UnreadableReference,
    build_tiles,
    common_sensors,
    label_definitions,
    read_label_rasters,
    references,
    register_scene,
)
from pipeline.errors import InputError
from pipeline.grid import Grid, ShardCell
from pipeline.matching import Points
from pipeline.registration import Coarse
from pipeline.scene import Scene, scene_from_dict
from pipeline.sensors import Sensor
from pipeline.stac import read_scenes


def coregister(
    scenes_url: str,
    archive_url: str,
    grid: Grid,
    config: CoregisterConfig,
    labels: str | None,
    only: frozenset[str] | None = None,
) -> dict[str, Any]:
    """Fill the archive from the scenes, or from `only` these ids, given new ones alone or all; scenes that it has keep their place.

    Only shards under given scenes are looked at, and of those only the ones are made that other scenes or settings change.
    """
    given, refused = read_scenes(scenes_url)
    if only is not None:
        given, refused = [s for s in given if s.id in only], {name: why for name, why in refused.items() if name in only}
    rasters = read_label_rasters(labels) if labels else []
    if not given:
        raise InputError(f"no usable scene in '{scenes_url}': {_reasons(refused)}")
    earlier = open_archive(archive_url) if is_archive(archive_url) else None
    made, records = (earlier.inputs(), earlier.scene_records()) if earlier else ({}, {})
    scenes = _with_known(given, records)
    settled = {name: record["reference"] for name, record in records.items()}
    chosen = references(scenes, config.reference, settled) if config.register else {}
    known_sensors = earlier.sensors if earlier else {}
    cells = {scene.id: grid.cells_over(scene.footprint) for scene in scenes}
    by_cell: dict[ShardCell, list[Scene]] = {cell: [] for scene in given for cell in cells[scene.id]}
    for scene in scenes:
        for cell in cells[scene.id] & by_cell.keys():
            by_cell[cell].append(scene)
    stamps = stamps_of(scenes, rasters, records)
    recipe = Recipe(common_sensors(scenes, known_sensors), chosen, rasters, config, stamps)
    stale = {cell: found for cell, found in by_cell.items() if made.get(cell.id) != recipe.digest(found, set())}
    # Only what these shards show needs to be registered: with all others nothing has changed.
    needed = _with_references({scene.id for found in stale.values() for scene in found}, scenes, chosen)
    alignments, unreadable = _register_all(needed, chosen, config)
    refused |= unreadable
    usable = [scene for scene in needed if scene.id not in unreadable]
    if needed and not usable:
        raise InputError(f"none of the {len(needed)} scenes in '{scenes_url}' can be read: {_reasons(refused)}")
    recipe = replace(recipe, sensors=common_sensors([s for s in scenes if s.id not in unreadable], known_sensors))
    archive = create_archive(archive_url, grid, recipe.sensors, label_definitions(rasters))
    stale = {cell: [scene for scene in found if scene.id not in unreadable] for cell, found in stale.items()}
    inputs = {cell: recipe.digest(found, set(unreadable)) for cell, found in stale.items()}
    stale = {cell: found for cell, found in stale.items() if made.get(cell.id) != inputs[cell]}
    _record_scenes(archive, usable, recipe, records)  # first: a shard without a record would lose its scenes in the next job
    written, withdrawn, failed = _write_all(archive, stale, inputs, recipe, alignments)
    refused |= failed
    write_statistics(archive)
    save_report(archive, usable, chosen, alignments, refused, config)
    return {
        "archive": archive.url,
        "digest": archive.digest(),
        "scenes": len(scenes) - len(unreadable),
        "scenes_registered": len(usable),
        "scenes_moved": sum(bool(alignment.field) for alignment in alignments.values()),
        "refused": refused,
        "shards_written": written,
        "shards_empty": withdrawn,
        "shards_up_to_date": len(by_cell) - len(stale),
        **inventory(archive),
    }


def _record_scenes(archive: Archive, scenes: list[Scene], recipe: "Recipe", records: dict[str, Any]) -> None:
    for scene in scenes:
        reference = recipe.chosen.get(scene.id)
        files = {href: recipe.stamps[href] for href in scene.hrefs}
        record = {"scene": scene.to_dict(), "reference": reference.id if reference else None, "files": files}
        if records.get(scene.id) != record:
            archive.write_scene_record(record)


def stamps_of(scenes: list[Scene], rasters: list[LabelRaster], records: dict[str, Any]) -> dict[str, str | None]:
    """Return what tells a replaced file from the one before, by href; of a file that is gone, what the archive noted of it."""
    noted = {href: stamp for record in records.values() for href, stamp in record.get("files", {}).items()}
    hrefs = sorted({href for scene in scenes for href in scene.hrefs} | {raster.href for raster in rasters})
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return {href: found or noted.get(href) for href, found in zip(hrefs, pool.map(_stamp, hrefs))}


def _stamp(href: str) -> str | None:
    try:
        return storage.stamp(href)
    except (InputError, OSError):
        return None  # reading the file will say what is wrong with it


def _with_known(given: list[Scene], records: dict[str, Any]) -> list[Scene]:
    """Return the given scenes, those of the archive that share ground with one of them, and the scenes that these follow."""
    scenes = {scene.id: scene for scene in given}
    ground = STRtree([scene.footprint.geom for scene in given])
    for name, record in records.items():
        scene = scene_from_dict(record["scene"])
        if name not in scenes and len(ground.query(scene.footprint.geom, predicate="intersects")):
            scenes[name] = scene
    waiting = list(scenes)
    while waiting:
        reference = records.get(waiting.pop(), {}).get("reference")
        if reference and reference not in scenes:
            scenes[reference] = scene_from_dict(records[reference]["scene"])
            waiting.append(reference)
    return sorted(scenes.values(), key=lambda scene: scene.id)


@dataclass(frozen=True)
class Recipe:
    """What makes a shard of scenes: the sensors' bands, the scene that each is registered to, labels and settings."""

    sensors: dict[str, Sensor]
    chosen: dict[str, Scene | None]
    rasters: list[LabelRaster]
    config: CoregisterConfig
    stamps: dict[str, str | None]

    def digest(self, scenes: list[Scene], unreadable: set[str]) -> str:
        """Return the SHA-256 of all that a shard of `scenes` depends on; of the files' content, size and time of change."""
        facts = [
            sorted((self._facts(scene, unreadable) for scene in scenes), key=json.dumps),
            [self.sensors[name].model_dump(mode="json") for name in sorted({s.sensor.name for s in scenes})],
            [[asdict(raster), self.stamps[raster.href]] for raster in self.rasters],
            asdict(self.config),
        ]
        return hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()

    def _facts(self, scene: Scene, unreadable: set[str]) -> list[Any]:
        """Return what names a scene's pixels and, by the scenes it follows, how they are moved."""
        if scene.id in unreadable:
            return [scene.id, "cannot be read"]
        reference = self.chosen.get(scene.id)
        files = [file.model_dump(mode="json") for file in (*scene.assets, *scene.masks)]
        stamps = [self.stamps[href] for href in scene.hrefs]
        return [scene.id, str(scene.time), files, stamps, reference and self._facts(reference, unreadable)]


def _with_references(wanted: set[str], scenes: list[Scene], chosen: dict[str, Scene | None]) -> list[Scene]:
    """Return the scenes called for by `wanted`, with those that they follow, in the order of `scenes`."""
    waiting = list(wanted)
    while waiting:
        reference = chosen.get(waiting.pop())
        if reference and reference.id not in wanted:
            wanted = {*wanted, reference.id}
            waiting.append(reference.id)
    return [scene for scene in scenes if scene.id in wanted]


@ray.remote(num_cpus=TASK_CPUS)
def _register(comparison: Comparison) -> Alignment | str:
    try:
        return register_scene(comparison, _each_block)
    except InputError as error:
        return str(error)


@ray.remote(num_cpus=TASK_CPUS)
def _points(measure: Callable[..., Points], block: Any, coarse: Coarse) -> Points | Exception:
    try:
        return measure(block, coarse)
    except (InputError, UnreadableReference) as error:
        return error


def _each_block(measure: Callable[..., Points], blocks: list[Any], coarse: Coarse) -> list[Points]:
    """Measure a small scene here, the blocks of a large one as tasks of their own (Ray lends out our CPU meanwhile)."""
    if len(blocks) == 1:
        return [measure(blocks[0], coarse)]
    found = ray.get([_points.remote(measure, block, coarse) for block in blocks])
    for part in found:
        if isinstance(part, Exception):
            raise part
    return [part for part in found if isinstance(part, Points)]


def _register_all(
    scenes: list[Scene], chosen: dict[str, Scene | None], config: CoregisterConfig
) -> tuple[dict[str, Alignment], dict[str, str]]:
    """Register every scene after the one it follows; return alignments and {scene id: reason} of unreadable scenes."""
    if not config.register:
        return {scene.id: unaligned("registration switched off") for scene in scenes}, {}
    done: dict[str, Alignment] = {s.id: UNMOVED for s in scenes if chosen[s.id] is None}
    unreadable: dict[str, str] = {}
    waiting = [s for s in scenes if chosen[s.id] is not None]
    while waiting:
        ready = [s for s in waiting if followed(s, chosen).id in done or followed(s, chosen).id in unreadable]
        tasks = {}
        for scene in ready:
            reference = followed(scene, chosen)
            if reference.id in unreadable:
                done[scene.id] = unaligned(f"its reference {reference.id} cannot be read")
            else:
                comparison = Comparison(scene, reference, done[reference.id], config.max_shift_m)
                tasks[_register.remote(comparison)] = scene.id
        for scene_id, found in gather(tasks, "register"):
            if isinstance(found, str):
                unreadable[scene_id] = found
            else:
                done[scene_id] = found
        waiting = [s for s in waiting if s not in ready]
    return done, unreadable


@ray.remote(num_cpus=TASK_CPUS)
def _write_shard(
    archive: Archive, cell: ShardCell, scenes: list[Scene], recipe: Recipe, alignments: dict[str, Alignment], inputs: str
) -> tuple[int, dict[str, str]]:
    config, grid = recipe.config, archive.grid
    tiles, refused = build_tiles(cell, grid, scenes, recipe.sensors, alignments, recipe.rasters, config.min_valid_fraction)
    splits = {site.id: grid.split_of(site) for site, _, _ in grid.sites(cell)}
    # A shard that lacks a scene which could not be read is not up to date: the next run tries again.
    return archive.publish(cell.id, splits, tiles, "incomplete" if refused else inputs), refused


def _write_all(
    archive: Archive,
    by_cell: dict[ShardCell, list[Scene]],
    inputs: dict[ShardCell, str],
    recipe: Recipe,
    alignments: dict[str, Alignment],
) -> tuple[int, int, dict[str, str]]:
    """Write shards; return how many have tiles, how many have none, and {scene id: reason} of unreadable scenes."""
    shared = ray.put(archive), ray.put(recipe), ray.put(alignments)
    tasks = {
        _write_shard.remote(shared[0], cell, by_cell[cell], shared[1], shared[2], inputs[cell]): cell.id
        for cell in sorted(by_cell, key=lambda cell: cell.id)
    }
    written = 0
    refused: dict[str, str] = {}
    for _, (num_tiles, failed) in gather(tasks, "shards"):
        count("tiles", num_tiles, job="coregister")
        written += num_tiles > 0
        refused |= failed
    return written, len(tasks) - written, refused


def _reasons(refused: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3]) or "it is empty"
