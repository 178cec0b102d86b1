"""terraloom embed MODEL_RUN ARCHIVE|RASTER OUT: what an encoder makes of an archive's tiles, or of an image of any size."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from cluster.counters import count
from cluster.embedding import ModelFeatures, features_of_shard, maps_of_shard
from cluster.raster import RasterTask, block_cells, block_name, cell_m, embed_block, read_block
from cluster.run import Run
from jobs.archives import TASK_CPUS
from jobs.distill import load_encoder, model_digest, model_folder
from jobs.progress import gather
from jobs.simulate import time_of
from models.encoder import Encoder
from pipeline import storage
from pipeline.archive import INDEX, Archive, open_archive
from pipeline.blend import Blend, Span
from pipeline.errors import InputError
from pipeline.features import features_url, missing, write_about, write_features
from pipeline.maps import PARTS, MapFormat, write_cells, write_cog, write_part, write_zarr
from pipeline.mosaic import Mosaic, ground_of, mosaics
from pipeline.scan import Given, scan
from pipeline.scene import Scene
from pipeline.sensors import load_sensor
from pipeline.stac import CATALOG_NAME, read_scenes, scenes_of

TASKS_AHEAD = 64
"""Blocks that are handed to Ray at a time: a country has millions."""


@dataclass(frozen=True)
class EmbedConfig:
    """What is embedded, and how an image is cut into windows."""

    sensors: tuple[str, ...] = ()
    """Sensors to embed; none: all that the model and the source share."""
    sensor: str | None = None
    """Raster files: sensor of all, a known name or a sensor YAML; default: as their tags and names tell."""
    datetime: str | None = None
    """Raster files: ISO 8601 time of those that state none."""
    format: MapFormat = "zarr"
    """Raster: zarr, cog, or geoparquet with a row for each cell, which can be searched. Archives give geoparquet."""
    window_m: float = 0.0
    """Raster: side of a window, metres; 0: as the tiles that the model was trained on."""
    overlap: float = 0.5
    """Share of a window that it has in common with the next."""
    margin_m: float = 0.0
    """Context at a window's sides that is seen and not kept, metres."""
    memory_mib: int = 256
    """Most that a task may hold of pixels and results, MiB; libraries and model come on top."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap is {self.overlap:g}, expected [0, 1), a share of a window")
        if self.memory_mib < 1:
            raise InputError(f"memory_mib is {self.memory_mib}, expected at least 1")
        if self.window_m < 0 or self.margin_m < 0:
            raise InputError(f"window_m is {self.window_m:g} and margin_m {self.margin_m:g}, expected 0 or more")


def embed(model_url: str, source: str, out: str, config: EmbedConfig) -> dict[str, Any]:
    """Embed an archive or a raster into folder `out`; what was done before is not done again."""
    run, model = Run(out, "embed"), model_folder(model_url)
    encoder = load_encoder(model)
    if storage.exists(storage.join(source, INDEX)):
        return _embed_archive(run, model, encoder, open_archive(source), config)
    return _embed_raster(run, model, encoder, storage.absolute(source), config)


def _embed_archive(run: Run, model: str, encoder: Encoder, archive: Archive, config: EmbedConfig) -> dict[str, Any]:
    """Write OUT/parts/<shard>.parquet, a row for each tile."""
    names = [spec.name for spec in encoder.config.sensors if spec.name in archive.sensors]
    wanted = _chosen(config, names, f"archive '{archive.url}' and the model share")
    inputs = {"model": model, "weights": model_digest(model), "kind": "archive", "source": archive.url, "digest": archive.digest()}
    if finished := run.begin(config, inputs):
        return finished
    done = set(storage.names(run.path(PARTS)))
    shared, remote = ray.put(archive), ray.remote(num_cpus=TASK_CPUS)(_embed_shard)
    todo = [shard for shard in archive.published() if f"{shard}.parquet" not in done]
    tasks = {remote.remote(shared, model, shard, wanted, run.path(PARTS, f"{shard}.parquet")): shard for shard in todo}
    for _, num_tiles in gather(tasks, "embed"):
        count("tiles", num_tiles, job="embed")
    facts = {"sensors": wanted, "width": encoder.config.pooled_width, "parts": len(archive.published())}
    return run.finish({**inputs, **facts})


def embed_into(model_url: str, archive_url: str) -> dict[str, Any]:
    """Keep what a teacher makes of every tile beside the archive, for students; only what is missing is done."""
    model, archive = model_folder(model_url), open_archive(archive_url)
    encoder = load_encoder(model)
    names = [spec.name for spec in encoder.config.sensors if spec.name in archive.sensors]
    if not names:
        raise InputError(f"archive '{archive.url}' and the model share no sensor; give another model")
    url = features_url(archive, model_digest(model))
    write_about(url, model, names, encoder.config.backbone.num_stages)
    todo, shared = missing(url, archive), ray.put(archive)
    remote = ray.remote(num_cpus=TASK_CPUS)(_keep_shard)
    for _ in gather({remote.remote(shared, model, url, shard, names): shard for shard in todo}, "features"):
        pass
    return {"job": "embed", "archive": archive.url, "features": url, "sensors": names, "shards": len(todo)}


def _keep_shard(archive: Archive, model: str, url: str, shard: str, sensors: list[str]) -> None:
    encoder, rows = load_encoder(model), archive.rows(shard)
    maps = {
        str(name): maps_of_shard(archive, encoder, shard, str(name), group["row"].to_numpy())
        for name, group in rows[rows["sensor"].isin(sensors)].groupby("sensor")
    }
    write_features(url, archive, shard, maps)


def _embed_shard(archive: Archive, model: str, shard: str, sensors: list[str], url: str) -> int:
    rows = archive.rows(shard)
    rows = rows[rows["sensor"].isin(sensors)].reset_index(drop=True)
    parts = [
        features_of_shard(archive, ModelFeatures(model), shard, str(name), group["row"].to_numpy())
        for name, group in rows.groupby("sensor")
    ]
    rows["id"] = rows["site"] + "/" + rows["sensor"] + "/" + rows["order"].astype(str)
    if parts:
        write_part(url, rows[["id", "site", "sensor", "time", "order", "shard", "row", "split", "geometry"]], np.concatenate(parts))
    return len(rows)


@dataclass(frozen=True)
class RasterPlan:
    """How an image is done: of each sensor what its tasks are given, and the side of its blocks in cells."""

    tasks: dict[str, RasterTask]
    sizes: dict[str, int]
    width: int

    @property
    def first(self) -> RasterTask:
        """Ground and windows are the same for all sensors."""
        return next(iter(self.tasks.values()))

    def blocks(self, name: str) -> Iterator[tuple[Span, np.ndarray, np.ndarray]]:
        """Yield the finished blocks of a sensor, one after the other."""
        for block in self.first.blend.blocks(self.sizes[name]):
            yield block, *read_block(self.tasks[name], block)


def _embed_raster(run: Run, model: str, encoder: Encoder, source: str, config: EmbedConfig) -> dict[str, Any]:
    """Write a map of each sensor in the format that is asked for."""
    scenes, refused = scenes_at(source, config.sensor, config.datetime)
    present = {scene.sensor.name for scene in scenes}
    known = [spec.name for spec in encoder.config.sensors if spec.name in present]
    found = mosaics(scenes, _chosen(config, known, f"'{source}' and the model share"))
    plan = _plan(run, model, encoder, found, config)
    shown = [scene.id for mosaic in found.values() for scene in mosaic.scenes]
    inputs = {"model": model, "weights": model_digest(model), "kind": "raster", "source": source, "scenes": shown}
    if finished := run.begin(config, inputs):
        return finished
    for name in found:
        _embed_blocks(plan.tasks[name], [*plan.first.blend.blocks(plan.sizes[name])])
    files = _write_maps(run, plan, config.format)
    storage.remove(run.path("blocks"))
    ground, blend = plan.first.ground, plan.first.blend
    place = {"crs": ground.crs, "left": ground.left, "top": ground.top, "cell_m": ground.cell_m, "shape": ground.shape}
    windows = {"window_m": blend.window * ground.cell_m, "overlap_cells": blend.overlap, "margin_cells": blend.margin}
    given = {"sensor_given": config.sensor, "datetime_given": config.datetime, "refused": refused}
    facts = {"sensors": [*found], "width": plan.width, "files": files, "block_cells": plan.sizes}
    return run.finish({**inputs, **facts, **place, **windows, **given})


def _plan(run: Run, model: str, encoder: Encoder, found: dict[str, Mosaic], config: EmbedConfig) -> RasterPlan:
    cell, net = cell_m(encoder), encoder.config.backbone
    window = max(1, round((config.window_m or _training_size_m(model)) / cell))
    ground = ground_of(found, cell, window)
    blend = Blend(ground.shape, window, min(window - 1, round(window * config.overlap)), math.ceil(config.margin_m / cell))
    tasks = {name: RasterTask(model, mosaic, ground, blend, run.path("blocks", name)) for name, mosaic in found.items()}
    sizes = {name: block_cells(blend, encoder, name, config.memory_mib * 2**20) for name in found}
    return RasterPlan(tasks, sizes, net.width(net.num_stages - 1))


def _embed_blocks(task: RasterTask, blocks: list[Span]) -> None:
    """Have Ray do the blocks that are not there yet."""
    done = set(storage.names(task.blocks_url))
    todo = [block for block in blocks if block_name(block) not in done]
    shared, remote = ray.put(task), ray.remote(num_cpus=TASK_CPUS)(embed_block)
    for first in range(0, len(todo), TASKS_AHEAD):
        tasks = {remote.remote(shared, block): block for block in todo[first : first + TASKS_AHEAD]}
        for _ in gather(tasks, f"embed {task.mosaic.sensor.name} {first}/{len(todo)}"):
            pass


def _write_maps(run: Run, plan: RasterPlan, kind: MapFormat) -> list[str]:
    """Put the blocks of each sensor together; return the files."""
    ground = plan.first.ground
    if kind == "geoparquet":
        for name, task in plan.tasks.items():
            for span, values, is_valid in plan.blocks(name):
                part = f"{name}_{block_name(span).removesuffix('.npz')}.parquet"
                write_cells(run.path(PARTS, part), task.mosaic, ground, span, values, is_valid)
        return [run.path(PARTS)]
    url = run.path("embeddings.zarr" if kind == "zarr" else "cog")
    with storage.staged_folder(url) as folder:
        for name in plan.tasks:
            if kind == "zarr":
                write_zarr(folder, name, ground, plan.width, plan.sizes[name], plan.blocks(name))
            else:
                write_cog(folder / f"{name}.tif", ground, plan.width, plan.blocks(name))
    return [url] if kind == "zarr" else [storage.join(url, f"{name}.tif") for name in plan.tasks]


def scenes_at(source: str, sensor: str | None, time: str | None) -> tuple[list[Scene], dict[str, str]]:
    """Return the scenes of a STAC file, a folder with one, a folder of raster files or one such file; and what was refused."""
    if source.endswith(".json") or storage.exists(storage.join(source, CATALOG_NAME)):
        scenes, refused = read_scenes(source)
    else:
        if not storage.exists(source):
            raise InputError(f"'{source}' does not exist; give an archive, a raster file, a folder of them or a STAC file")
        given = Given(load_sensor(sensor) if sensor else None, time_of(time) if time else None)
        fs, path = storage.filesystem(source)
        is_folder = fs.isdir(path) and not source.rstrip("/").lower().endswith(".zarr")
        folder = source if is_folder else source.rstrip("/").rpartition("/")[0]
        items, refused = scan(folder, given, None if is_folder else source.rstrip("/"))
        scenes = scenes_of(items)
    if not scenes:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*refused.items()][:3])
        raise InputError(f"no scene in '{source}' can be used: {reasons}")
    return scenes, refused


def _chosen(config: EmbedConfig, known: list[str], what: str) -> list[str]:
    """Return the sensors to embed."""
    if missing := [name for name in config.sensors if name not in known]:
        raise InputError(f"sensor '{missing[0]}' cannot be embedded; {what} {', '.join(known) or 'none'}")
    if not known:
        raise InputError(f"{what} no sensor; give other scenes, another model, or say --sensor")
    return [*config.sensors] or known


def _training_size_m(model: str) -> float:
    """Return the side of the tiles that the model of a run was trained on."""
    folder = model
    while folder.count("/") > 1:
        folder = folder.rpartition("/")[0]
        if storage.exists(storage.join(folder, "config.json")):
            archive = json.loads(storage.read_bytes(storage.join(folder, "config.json")))["inputs"]["archive"]
            return open_archive(archive).grid.site_size_m
    raise InputError(f"'{model}' lies in no run, so the size of its training tiles is not known; say --window-m")
