"""terraloom coregister SCENES ARCHIVE: register scenes to each other and cut them into an archive, as Ray tasks."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import ray

from jobs.archives import TASK_CPUS, inventory, write_statistics
from jobs.progress import gather
from pipeline import storage
from pipeline.alignment import UNMOVED, Alignment, alignment_from_dict, unaligned
from pipeline.archive import INDEX, Archive, create_archive, open_archive
from pipeline.coregister import (
    Comparison,
    CoregisterConfig,
    LabelRaster,
    UnreadableReference,
    build_tiles,
    common_sensors,
    label_definitions,
    read_label_rasters,
    read_structure,
    references,
    register_scene,
)
from pipeline.errors import InputError
from pipeline.grid import Grid, ShardCell, split_of
from pipeline.matching import Points
from pipeline.registration import Coarse, Registration
from pipeline.scene import Scene, read_scenes, scene_from_dict
from pipeline.sensors import Sensor

NUM_PICTURES = 4
PICTURE_PX = 192


def coregister(scenes_url: str, archive_url: str, grid: Grid, config: CoregisterConfig, labels: str | None) -> dict[str, Any]:
    """Fill the archive from the scenes, given only the new ones or all of them.

    Scenes that the archive has already stay registered as they are and go into the same tiles' shards as the new ones.
    Only shards under given scenes are looked at, and of those only what has changed is made.
    """
    given, refused = read_scenes(scenes_url)
    rasters = read_label_rasters(labels) if labels else []
    if not given:
        raise InputError(f"no usable scene in '{scenes_url}': {_reasons(refused)}")
    known_sensors, records = _known(archive_url)
    scenes = _with_known(given, records)
    chosen = references(scenes, config.reference, records.keys()) if config.register else {}
    alignments, unreadable = _register_all(scenes, chosen, config, records)
    refused |= unreadable
    usable = [scene for scene in scenes if scene.id not in unreadable]
    if not usable:
        raise InputError(f"none of the {len(scenes)} scenes in '{scenes_url}' can be read: {_reasons(refused)}")
    sensors = common_sensors(usable, known_sensors)
    archive = create_archive(archive_url, grid, sensors, label_definitions(rasters))
    by_cell: dict[ShardCell, list[Scene]] = {cell: [] for scene in given for cell in grid.cells_over(scene.footprint)}
    for scene in usable:
        for cell in grid.cells_over(scene.footprint) & by_cell.keys():
            by_cell[cell].append(scene)
    written, skipped, failed = _write_all(archive, by_cell, sensors, alignments, rasters, config)
    refused |= failed
    for scene in usable:
        digest = _registration_digest(scene, chosen.get(scene.id), alignments, config)
        record = {"scene": scene.to_dict(), "alignment": alignments[scene.id].to_dict(), "inputs": digest}
        if records.get(scene.id) != json.loads(json.dumps(record)):
            archive.write_scene_record(scene.id, record)
    if written:
        write_statistics(archive)
        _save_pictures(archive, usable, chosen, alignments)
    report = {
        "scenes": {s.id: _record(s, alignments[s.id]) for s in usable},
        "refused": refused,
        "settings": asdict(config),
    }
    storage.write_json(storage.join(archive.url, "reports", "coregister.json"), report)
    return {
        "archive": archive.url,
        "scenes": len(usable),
        "scenes_moved": sum(a.field is not None for a in alignments.values()),
        "refused": refused,
        "shards_written": written,
        "shards_up_to_date": skipped,
        **inventory(archive),
    }


def _known(archive_url: str) -> tuple[dict[str, Sensor], dict[str, Any]]:
    """Return the sensors and scene records of the archive; nothing where there is none yet."""
    if not storage.exists(storage.join(archive_url, INDEX)):
        return {}, {}
    archive = open_archive(archive_url)
    return archive.sensors, archive.scene_records()


def _with_known(given: list[Scene], records: dict[str, Any]) -> list[Scene]:
    """Return the given scenes and those of the archive that share ground with one of them, in one order."""
    added = {scene.id for scene in given}
    known = [scene_from_dict(record["scene"]) for name, record in records.items() if name not in added]
    touched = [k for k in known if any(k.footprint.intersects(scene.footprint) for scene in given)]
    return sorted([*given, *touched], key=lambda scene: scene.id)


def _registration_digest(scene: Scene, reference: Scene | None, alignments: dict[str, Alignment], config: CoregisterConfig) -> str:
    """Return a digest of all that a scene's alignment follows from."""
    against = [reference.to_dict(), alignments[reference.id].to_dict()] if reference else []
    facts = [scene.to_dict(), against, config.register, config.max_shift_m]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


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
    scenes: list[Scene], chosen: dict[str, Scene | None], config: CoregisterConfig, records: dict[str, Any]
) -> tuple[dict[str, Alignment], dict[str, str]]:
    """Register every scene after the one it follows; return alignments and {scene id: reason} of unreadable scenes.

    What `records` say was found from the same files with the same settings is not done again.
    """
    if not config.register:
        return {scene.id: unaligned("registration switched off") for scene in scenes}, {}
    done: dict[str, Alignment] = {s.id: UNMOVED for s in scenes if chosen[s.id] is None}
    unreadable: dict[str, str] = {}
    waiting = [s for s in scenes if chosen[s.id] is not None]
    while waiting:
        ready = [s for s in waiting if _followed(s, chosen).id in done or _followed(s, chosen).id in unreadable]
        tasks = {}
        for scene in ready:
            reference = _followed(scene, chosen)
            record = records.get(scene.id)
            if reference.id in unreadable:
                done[scene.id] = unaligned(f"its reference {reference.id} cannot be read")
            elif record and record["inputs"] == _registration_digest(scene, reference, done, config):
                done[scene.id] = alignment_from_dict(record["alignment"])
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


def _followed(scene: Scene, chosen: dict[str, Scene | None]) -> Scene:
    reference = chosen[scene.id]
    assert reference is not None
    return reference


@ray.remote(num_cpus=TASK_CPUS)
def _write_shard(
    archive: Archive,
    cell: ShardCell,
    scenes: list[Scene],
    sensors: dict[str, Sensor],
    alignments: dict[str, Alignment],
    rasters: list[LabelRaster],
    config: CoregisterConfig,
    inputs: str,
) -> tuple[int, dict[str, str]]:
    tiles, refused = build_tiles(cell, archive.grid, scenes, sensors, alignments, rasters, config.min_valid_fraction)
    # A shard that lacks a scene which could not be read is not up to date: the next run tries again.
    if not tiles:
        archive.withdraw(cell.id)
        return 0, refused
    return archive.publish(cell.id, split_of(cell), tiles, "incomplete" if refused else inputs), refused


def _write_all(
    archive: Archive,
    by_cell: dict[ShardCell, list[Scene]],
    sensors: dict[str, Sensor],
    alignments: dict[str, Alignment],
    rasters: list[LabelRaster],
    config: CoregisterConfig,
) -> tuple[int, int, dict[str, str]]:
    tasks, skipped = {}, 0
    shared = ray.put(archive), ray.put(alignments), ray.put(rasters)
    for cell, scenes in sorted(by_cell.items(), key=lambda entry: entry[0].id):
        inputs = _inputs_digest(scenes, sensors, alignments, rasters, config)
        if archive.inputs_of(cell.id) == inputs:
            skipped += 1
            continue
        tasks[_write_shard.remote(shared[0], cell, scenes, sensors, shared[1], shared[2], config, inputs)] = cell.id
    written = 0
    refused: dict[str, str] = {}
    for _, (num_tiles, failed) in gather(tasks, "shards"):
        written += num_tiles > 0
        refused |= failed
    return written, skipped, refused


def _inputs_digest(
    scenes: list[Scene],
    sensors: dict[str, Sensor],
    alignments: dict[str, Alignment],
    rasters: list[LabelRaster],
    config: CoregisterConfig,
) -> str:
    facts = [
        sorted((s.id, [asdict(a) for a in s.assets], s.cloud_href, alignments[s.id].to_dict()) for s in scenes),
        [sensors[name].model_dump() for name in sorted({s.sensor.name for s in scenes})],
        [asdict(raster) for raster in rasters],
        asdict(config),
    ]
    return hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()


def _save_pictures(
    archive: Archive, scenes: list[Scene], chosen: dict[str, Scene | None], alignments: dict[str, Alignment]
) -> None:
    """Keep small reference / before / after images of the scenes that moved most, one per sensor first, for the report."""
    moved = [s for s in scenes if alignments[s.id].field]
    moved.sort(key=lambda s: -float(np.hypot(*_shift_of_centre(s, alignments[s.id]).shift_m)))
    firsts = {s.sensor.name: s for s in reversed(moved)}
    ordered = [*firsts.values(), *(s for s in moved if s not in firsts.values())][:NUM_PICTURES]
    arrays = {}
    for scene in ordered:
        reference = _followed(scene, chosen)
        whole = Comparison(scene, reference, alignments[reference.id], 0.0).grid
        middle = (slice(whole.shape.y // 2 - PICTURE_PX // 2, None), slice(whole.shape.x // 2 - PICTURE_PX // 2, None))
        geobox = whole[tuple(slice(max(0, s.start), max(0, s.start) + PICTURE_PX) for s in middle)]
        arrays[f"{scene.id}/reference"] = read_structure(reference, geobox, alignments[reference.id])[0].mean(axis=0)
        arrays[f"{scene.id}/before"] = read_structure(scene, geobox)[0].mean(axis=0)
        arrays[f"{scene.id}/after"] = read_structure(scene, geobox, alignments[scene.id])[0].mean(axis=0)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    storage.write_bytes(storage.join(archive.url, "reports", "registration.npz"), buffer.getvalue())


def _shift_of_centre(scene: Scene, alignment: Alignment) -> Registration:
    crs = str(alignment.grid.crs) if alignment.grid else "EPSG:4326"
    return alignment.at(*scene.footprint.centroid.to_crs(crs).coords[0], crs)


def _record(scene: Scene, alignment: Alignment) -> dict[str, Any]:
    """Return what the report keeps of a scene: its shift at the centre, and the whole displacement."""
    return {
        "sensor": scene.sensor.name,
        "time": scene.time,
        **asdict(_shift_of_centre(scene, alignment)),
        "displacement": alignment.to_dict(),
    }


def _reasons(refused: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3]) or "it is empty"
