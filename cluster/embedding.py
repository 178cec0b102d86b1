"""Features of tiles for probes: by a trained encoder, a random one, or plain image statistics."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cluster.batches import to_tiles
from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from pipeline import storage
from pipeline.archive import Archive
from pipeline.augment import SensorArrays
from pipeline.sensors import Sensor

BATCH_SIZE = 64


class FeatureMaker(Protocol):
    """Turns tiles of one sensor, (N, C, Y, X) in physical units with (N, Y, X) validity, into features (N, D)."""

    def features(self, sensor: Sensor, physical: np.ndarray, is_valid: np.ndarray) -> np.ndarray: ...


@dataclass
class ModelFeatures:
    """Pooled embeddings of the encoder in a run's model folder."""

    model_url: str

    def load(self) -> Encoder:
        with storage.local_copy(self.model_url) as folder:
            return Encoder.load(folder)

    def features(self, sensor: Sensor, physical: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        return _embed(self.load(), sensor, physical, is_valid)


@dataclass
class RandomFeatures:
    """The same encoder as it was before any training, drawn from `seed`."""

    config: EncoderConfig
    seed: int

    def features(self, sensor: Sensor, physical: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        encoder = Encoder(self.config, torch.Generator().manual_seed(self.seed)).eval()
        return _embed(encoder, sensor, physical, is_valid)


@dataclass
class ImageStatistics:
    """Per-band mean, standard deviation, minimum and maximum over valid pixels."""

    def features(self, sensor: Sensor, physical: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        found = []
        for pixels, valid in zip(physical, is_valid):
            inside = pixels[:, valid] if valid.any() else np.zeros((len(pixels), 1), np.float32)
            found.append(np.concatenate([inside.mean(1), inside.std(1), inside.min(1), inside.max(1)]))
        return np.stack(found)


def _embed(encoder: Encoder, sensor: Sensor, physical: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    found = []
    for first in range(0, len(physical), BATCH_SIZE):
        part = slice(first, first + BATCH_SIZE)
        dates = (len(physical[part]), 1)
        arrays = SensorArrays(sensor, physical[part, None], is_valid[part, None], np.ones(dates, bool), np.full(dates, np.nan))
        batch = Batch({sensor.name: to_tiles(arrays)}, torch.full((len(physical[part]), 2), torch.nan, dtype=torch.float64))
        found.append(encoder.encode(batch)[sensor.name].pooled[:, 0].numpy())
    return np.concatenate(found)


def features_of_shard(archive: Archive, maker: FeatureMaker, shard: str, sensor_name: str, rows: np.ndarray) -> np.ndarray:
    """Return features (N, D) of tiles `rows` of one sensor in one shard."""
    torch.set_num_threads(1)
    sensor = archive.sensors[sensor_name]
    stored, is_valid = archive.read(shard, sensor_name, rows)
    return maker.features(sensor, sensor.to_physical(stored), is_valid > 0)
