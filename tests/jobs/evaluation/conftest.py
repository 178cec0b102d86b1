"""A small archive whose labels can be told from its pixels, and a model that knows its sensor."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.batches import sensor_specs
from jobs.archives import write_statistics
from models.encoder import Encoder, EncoderConfig
from models.swin import SwinConfig
from pipeline.archive import Archive, create_archive
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap
from pipeline.sensors import load_sensor
from pipeline.shard import Tile

SENSOR, SIDE_PX = "sentinel1_grd", 16
LEVELS_DB = (-20.0, -14.0, -8.0)
LABELS = {
    "level": Label("class", "tile", ("dark", "grey", "bright")),
    "bands": Label("multilabel", "tile", ("vv_high", "vh_high", "none")),
    "bright": Label("binary", "tile"),
    "share": Label("fraction", "tile"),
    "water": Label("map", "tile", ("land", "water", "clutter")),
    "flood": Label("map", "site", ("dry", "flooded")),
}
SHARDS = {"train": 4, "val": 2, "test": 2}
SITES_PER_SHARD = 9


def tiles_of(site: str, level: int, rng: np.random.Generator) -> list[Tile]:
    """Return two dates of a site: a dark rectangle is water, at the second date a darker square is flooded too."""
    sensor, tiles = load_sensor(SENSOR), []
    size = int(rng.integers(4, 13))
    flood = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    corner = rng.integers(0, SIDE_PX - 6, 2)
    flood[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6] = 1
    for order in range(2):
        sigma0_db = LEVELS_DB[level] + rng.normal(0, 1, (2, SIDE_PX, SIDE_PX))
        water = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
        water[:, :size] = 1
        sigma0_db[:, :, :size] -= 8
        sigma0_db[:, (flood == 1) & (order == 1)] += 10
        water[:2, -2:] = 2
        nothing = np.ones_like(water, bool)
        nothing[-1] = False
        labels = {
            "level": float(level),
            "bright": float(level == 2),
            "share": size / SIDE_PX,
            "bands": [0, 1] if level == 2 else [0] if level else [2],
        }
        maps = {"water": LabelMap(water, nothing), "flood": LabelMap(flood, nothing)}
        stored = sensor.to_stored(np.clip(sigma0_db, -39, 9).astype(np.float32))
        is_valid = np.ones((SIDE_PX, SIDE_PX), bool)
        tiles.append(Tile(SENSOR, site, stored, is_valid, None, order, f"{site}/{order}", labels=labels, maps=maps))
    return tiles


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """72 sites of two dates in 24 places."""
    sensor, rng = load_sensor(SENSOR), np.random.default_rng(0)
    url = str(tmp_path_factory.mktemp("told") / "archive")
    archive = create_archive(url, Grid(site_size_m=SIDE_PX * sensor.gsd_m), {SENSOR: sensor}, LABELS)
    for split, count in SHARDS.items():
        for shard in range(count):
            sites = [f"told/{split}{shard}_{n // 3}/r0c{n % 3}" for n in range(SITES_PER_SHARD)]
            found = [tile for n, site in enumerate(sites) for tile in tiles_of(site, n % 3, rng)]
            archive.publish(f"told_{split}_{shard}", split, found, "told")
    write_statistics(archive)
    return archive


def write_model(folder: Path, archive: Archive, scale: float = 1.0) -> str:
    """Write a run with an untrained encoder of the archive's sensor; `scale` divides its statistics."""
    specs = tuple(
        type(spec)(**{**vars(spec), "mean": tuple(m / scale for m in spec.mean), "std": tuple(s / scale for s in spec.std)})
        for spec in sensor_specs(archive)
    )
    config = EncoderConfig(SwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window=2), 40.0, specs, "stages")
    Encoder(config, torch.Generator().manual_seed(0)).save(folder / "model")
    content = {"job": "pretrain", "inputs": {"archive": archive.url, "recipe": "none"}}
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(scope="session")
def model(told: Archive, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"), told)
