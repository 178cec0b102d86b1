"""Features of tiles for probes: by a trained encoder, a random one, or plain image statistics."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from cluster.batches import to_tiles
from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from pipeline import storage
from pipeline.archive import Archive
from pipeline.augment import SensorArrays
from pipeline.dates import SECONDS_PER_DAY, seconds_of

BATCH_SIZE = 64


class FeatureMaker(Protocol):
    """Turns tiles of one sensor, (N, T) dates at (N, 2) longitudes and latitudes, into features (N, T, D) float32."""

    def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray: ...


@dataclass
class ModelFeatures:
    """Pooled embeddings of the encoder in a run's model folder."""

    model_url: str

    def load(self) -> Encoder:
        with storage.local_copy(self.model_url) as folder:
            return Encoder.load(folder)

    def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
        return embed(self.load(), arrays, lonlat_deg)


@dataclass
class RandomFeatures:
    """The same encoder as it was before any training, drawn from `seed`."""

    config: EncoderConfig
    seed: int

    def load(self) -> Encoder:
        return Encoder(self.config, torch.Generator().manual_seed(self.seed)).eval()

    def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
        return embed(self.load(), arrays, lonlat_deg)


@dataclass
class ImageStatistics:
    """Per-band mean, standard deviation, minimum and maximum over valid pixels."""

    def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
        found = []
        tiles, masks = (part.reshape(-1, *part.shape[2:]) for part in (arrays.pixels, arrays.is_valid))
        for pixels, valid in zip(tiles, masks):
            inside = pixels[:, valid] if valid.any() else np.zeros((len(pixels), 1), np.float32)
            found.append(np.concatenate([inside.mean(1), inside.std(1), inside.min(1), inside.max(1)]))
        return np.stack(found).reshape(*arrays.is_present.shape, -1)


def embed(encoder: Encoder, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
    """Return pooled embeddings (N, T, D); dates attend to one another where the encoder has them together."""
    tiles, lonlat, found = to_tiles(arrays), torch.from_numpy(lonlat_deg), []
    for first in range(0, len(lonlat), BATCH_SIZE):
        part = slice(first, first + BATCH_SIZE)
        arrays_of = {name: getattr(tiles, name)[part] for name in ("pixels", "is_valid", "is_present", "time_days")}
        batch = Batch({arrays.sensor.name: replace(tiles, **arrays_of)}, lonlat[part])
        found.append(encoder.encode(batch)[arrays.sensor.name].pooled.numpy())
    return np.concatenate(found)


def features_of_shard(archive: Archive, maker: FeatureMaker, shard: str, sensor_name: str, rows: np.ndarray) -> np.ndarray:
    """Return features (N, D) of tiles `rows` of one sensor in one shard."""
    torch.set_num_threads(1)
    return maker.features(*tiles_of(archive, shard, sensor_name, rows))[:, 0]


@torch.no_grad()
def maps_of_shard(archive: Archive, encoder: Encoder, shard: str, sensor_name: str, rows: np.ndarray) -> list[np.ndarray]:
    """Return each stage's maps (N, D, y, x) float32 of tiles `rows`, as students are taught: time and place untold."""
    torch.set_num_threads(1)
    tiles, spec, found = to_tiles(tiles_of(archive, shard, sensor_name, rows)[0]), encoder.spec(sensor_name), []
    spec.check(tiles, encoder.config.token_size_m)
    normalised, _ = encoder.normalise(tiles, spec)
    is_valid = tiles.is_observed.flatten(0, 1)
    for first in range(0, len(rows), BATCH_SIZE):
        part = slice(first, first + BATCH_SIZE)
        found.append(encoder.features(normalised[part], is_valid[part], sensor_name).maps)
    return [torch.cat(stage).permute(0, 3, 1, 2).numpy() for stage in zip(*found)]


def tiles_of(archive: Archive, shard: str, sensor_name: str, rows: np.ndarray) -> tuple[SensorArrays, np.ndarray]:
    """Return tiles `rows`, one date each, and where they are, (N, 2) longitudes and latitudes."""
    sensor, tiles = archive.sensors[sensor_name], archive.tiles([shard])
    facts = tiles[tiles["sensor"] == sensor_name].set_index("row").loc[rows]
    stored, is_valid = archive.read(shard, sensor_name, rows)
    days = seconds_of(facts["time"])[:, None] / SECONDS_PER_DAY
    pixels = sensor.to_physical(stored)[:, None]
    arrays = SensorArrays(sensor, pixels, is_valid[:, None] > 0, np.ones(days.shape, bool), days)
    return arrays, np.array(facts[["lon_deg", "lat_deg"]], np.float64)  # a copy that torch may write to
