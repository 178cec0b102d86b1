"""What a recipe's steps are made of: made micro-batches in the shape of an archive's, and what each sensor set costs.

Pixels are noise about each sensor's statistics; nothing of an archive is decoded. Of a large archive a few shards, evenly
spread, stand for all.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from cluster.batches import sensor_specs, spec_of
from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from models.batch import Batch, Tiles
from models.cost import Cost, CostCounter, measure
from models.recomputation import recompute_blocks
from models.sensor import SensorSpec
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError
from pipeline.sensors import Sensor, load_sensor
from pipeline.views import SensorSet, presence, sensor_sets

SHARDS = 32
"""Of an archive's shards, those that are looked at."""
SENSORS = ("sentinel1_grd", "sentinel2_l2a")
"""Without an archive."""
COMPRESSION = 1.6
"""Of tiles by the archive's codec (docs/benchmarks.md); without an archive."""
SHARD_BYTES = 128e6
"""Stored, of all sensors: the middle of what shards should be (docs/design.md, 3.4); without an archive."""
SITE_M, LARGE_SITE_M = 640.0, 2240.0
"""Without an archive: sites of 16 tokens of 40 m, and of 224 px of 10 m for recipes with larger tokens."""


@dataclass(frozen=True)
class SetShape:
    """One sensor set: its share of the steps; of one sample the bytes stored, and decoded as they are stored; of a shard its

    samples.
    """

    sensors: SensorSet
    share: float
    stored_bytes: float
    raw_bytes: float
    shard_samples: float

    @property
    def shard_requests(self) -> int:
        """Requests to an object store for one shard: its catalog part; of each sensor two arrays and what describes them."""
        return 1 + 4 * len(self.sensors)


@dataclass(frozen=True)
class Shape:
    """What comes out of an archive: sensors as models know them, sensor sets, the side of a site."""

    specs: tuple[SensorSpec, ...]
    sets: tuple[SetShape, ...]
    site_m: float


def shape_of_archive(url: str, train: TrainConfig) -> Shape:
    """Return the shape of the archive at `url` for the view of `train`."""
    archive = open_archive(url)
    published = archive.published()
    shards = [published[i] for i in np.unique(np.linspace(0, len(published) - 1, SHARDS).astype(int))] if published else []
    if not shards:
        raise InputError(f"archive '{url}' has no tiles; fill it with 'terraloom coregister' or 'terraloom ingest'")
    everything = archive.tiles(shards)
    tiles = everything[everything["split"] == "train"]
    specs, site_m = sensor_specs(archive), archive.grid.site_size_m
    counts = {
        s: len(train.view.samples(tiles, s)) for s in train.sensor_sets or sensor_sets(presence(tiles), archive.sensors, train.view)
    }
    if not sum(counts.values()):
        raise InputError(f"no {type(train.view).__name__} sample in {len(shards)} shards of '{url}'; use another view or archive")
    sizes = [storage.files(archive.shard_url(shard)) for shard in shards]
    stored: Counter[str] = Counter()
    for name, size in ((name, size) for files in sizes for name, size in files.items()):
        stored[name.partition("/")[0]] += size
    number = everything["sensor"].value_counts().to_dict()
    of_tile = {name: stored[name] / number[name] for name in number}
    weights = {s: count**train.share_exponent for s, count in counts.items() if count}
    sets = [
        _set(s, weight / sum(weights.values()), archive.sensors, site_m, train, of_tile, counts[s] / len(shards))
        for s, weight in weights.items()
    ]
    return Shape(specs, tuple(sets), site_m)


def assumed_shape(recipe: Any, site_m: float | None) -> Shape:
    """Return a shape without an archive: Sentinel-1 and Sentinel-2 on sites that suit the recipe's tokens and crops."""
    train: TrainConfig = recipe.train
    cut_m = [size for window in train.stream.windows for size in window.sizes_m]
    site_m = site_m or max([SITE_M if recipe.token_size_m <= 40 else LARGE_SITE_M, *cut_m])
    names = sorted({name for s in train.sensor_sets for name in s}) or list(SENSORS)
    sensors = {name: load_sensor(name) for name in names}
    # As in an archive where every site has every sensor once.
    found: Counter[tuple[SensorSet, str]] = Counter({(tuple(names), name): 1000 for name in ("", *names)})
    chosen = train.sensor_sets or tuple(sensor_sets(found, sensors, train.view))
    of_tile = {name: _tile_bytes(sensor, site_m) / COMPRESSION for name, sensor in sensors.items()}
    per_shard = SHARD_BYTES / (train.view.num_dates * sum(of_tile.values()))
    sets = [_set(s, 1 / len(chosen), sensors, site_m, train, of_tile, per_shard) for s in chosen]
    return Shape(tuple(_spec(sensor) for sensor in sensors.values()), tuple(sets), site_m)


def _set(
    names: SensorSet,
    share: float,
    sensors: dict[str, Sensor],
    site_m: float,
    train: TrainConfig,
    of_tile: dict[str, float],
    shard_samples: float,
) -> SetShape:
    times = train.view.num_dates
    raw = times * sum(_tile_bytes(sensors[name], site_m) for name in names)
    return SetShape(names, share, times * sum(of_tile[name] for name in names), raw, shard_samples)


def _tile_bytes(sensor: Sensor, site_m: float) -> float:
    """Return the bytes of one tile as stored numbers, with its mask."""
    return float(np.prod(sensor.tile_shape(site_m)) * (len(sensor.bands) * np.dtype(sensor.dtype).itemsize + 1))


def _spec(sensor: Sensor) -> SensorSpec:
    low, high = sensor.valid_range
    bands = len(sensor.bands)
    return spec_of(sensor, [(low + high) / 2] * bands, [(high - low) / 8] * bands)


def made_batch(specs: Sequence[SensorSpec], side_m: float, train: TrainConfig, samples: int, index: int = 0) -> Batch:
    """Return a micro-batch of noise, everything valid and present, with the crops that `train` takes."""
    draw, times = torch.Generator().manual_seed(index), train.view.num_dates

    def batch(side_m: float) -> Batch:
        tiles = {spec.name: _made_tiles(spec, side_m, times, samples, draw) for spec in specs}
        return Batch(tiles, torch.full((samples, 2), 10.0, dtype=torch.float64), index)

    crops = train.stream.crops
    return replace(batch(side_m), crops=tuple(batch(size) for size in crops.sizes_m) if crops else ())


def _made_tiles(spec: SensorSpec, side_m: float, times: int, samples: int, draw: torch.Generator) -> Tiles:
    side, here = round(side_m / spec.gsd_m), torch.ones(samples, times, dtype=torch.bool)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    pixels = torch.randn(samples, times, spec.num_bands, side, side, generator=draw) * std + mean
    days = torch.full((samples, times), 18_000.0, dtype=torch.float64) + torch.arange(times)
    return Tiles(pixels, torch.ones(samples, times, side, side, dtype=torch.bool), here, days, spec.bands, spec.unit, spec.gsd_m)


def costs(objective: nn.Module, shape: Shape, train: TrainConfig, is_fused: bool) -> dict[SensorSet, list[Cost]]:
    """Return what each sensor set costs `objective`, once for every turn that its sensors may take and every size of tiles."""
    model: Any = objective.to(torch.bfloat16 if train.optimiser.bf16 else torch.float32).train()
    if train.recompute:
        recompute_blocks(model)
    return {part.sensors: _turns(model, part.sensors, shape, train, is_fused) for part in shape.sets}


def _turns(model: nn.Module, sensors: SensorSet, shape: Shape, train: TrainConfig, is_fused: bool) -> list[Cost]:
    specs = [spec for spec in shape.specs if spec.name in sensors]
    sides_m = train.stream.sizes_m or (shape.site_m,)
    made = [partial(made_batch, specs, side_m, train, index=turn) for side_m in sides_m for turn in range(len(specs))]
    return [measure(model, make, is_fused, train.batch_size) for make in made]


def optimiser_bytes(config: OptimiserConfig) -> float:
    """Return the bytes that one update of a parameter reads and writes, counted in a real one."""
    layer = nn.Linear(64, 64, bias=False)
    optimiser = config.build(layer)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimiser.step()  # makes its state
    with CostCounter() as counter:
        optimiser.step()
    return counter.moved / layer.weight.numel()
