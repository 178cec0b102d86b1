"""The supervised baseline: the same encoder, from random weights, trained on the labels alone."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.batches import to_tiles
from models.batch import Tiles
from models.encoder import Encoder, EncoderConfig
from pipeline.archive import Archive
from pipeline.augment import SensorArrays, dihedral

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class ScratchConfig:
    """`kind` and `num_classes` are the label's; steps and samples per step."""

    num_steps: int
    batch_size: int
    kind: str
    num_classes: int


class Supervised(nn.Module):
    """An encoder and a linear head over what probes see: one date, or first, last and their difference."""

    def __init__(self, config: EncoderConfig, num_dates: dict[str, int], num_outputs: int, generator: torch.Generator):
        super().__init__()
        self.encoder = Encoder(config, generator)
        width = sum(config.pooled_width * (1 if dates == 1 else 3) for dates in num_dates.values())
        self.head = nn.Linear(width, num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tiles: dict[str, Tiles]) -> tuple[Tensor, Tensor]:
        """Return (B, outputs) float32 and the experts' balance loss."""
        parts, balance = [], torch.zeros(())
        for name, part in tiles.items():
            normalised, _ = self.encoder.normalise(part, self.encoder.spec(name))
            is_valid = part.is_observed.flatten(0, 1)
            maps, extra = self.encoder.features(normalised, is_valid, name)
            pooled = self.encoder.pool(maps, self.encoder.cells(is_valid, name)).unflatten(0, part.is_present.shape)
            first, last = pooled[:, 0], pooled[:, -1]
            parts += [first] if pooled.shape[1] == 1 else [first, last, (last - first).abs()]
            balance = balance + extra
        features = torch.cat(parts, -1)
        return F.linear(features, self.head.weight.float(), self.head.bias.float()), balance


def train_from_scratch(
    archive: Archive,
    config: EncoderConfig,
    places: dict[str, np.ndarray],
    labels: np.ndarray,
    split: np.ndarray,
    settings: ScratchConfig,
    seed: int,
) -> np.ndarray:
    """Train on the train split and return predictions for the test split, as `probes.predict` gives them.

    `places` is sensor -> (samples, dates, 2) of (shard, row). bf16 with float32 master weights would need an engine for
    a minute's work; autocast keeps float32 weights.
    """
    torch.set_num_threads(1)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    outputs = settings.num_classes if settings.kind == "class" else 1
    model = Supervised(config, {name: where.shape[1] for name, where in places.items()}, outputs, generator)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=settings.num_steps)
    train = np.flatnonzero(split == "train")
    cache = _Cache(archive)
    for _ in range(settings.num_steps):
        chosen = rng.choice(train, min(settings.batch_size, len(train)), replace=False)
        with torch.autocast("cpu", torch.bfloat16):
            predicted, balance = model(cache.load(places, chosen, rng.integers(8, size=len(chosen))))
        loss = _loss(settings.kind, predicted.float(), torch.from_numpy(labels[chosen])) + 0.01 * balance
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()
    test, found = np.flatnonzero(split == "test"), []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for first in range(0, len(test), 64):
            chosen = test[first : first + 64]
            found.append(_answer(settings.kind, model(cache.load(places, chosen, np.zeros(len(chosen), int)))[0].float()))
    return torch.cat(found).numpy()


class _Cache:
    """Shards that were read once; labelled sets are small."""

    def __init__(self, archive: Archive):
        self._archive = archive
        self._tiles: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = {}

    def load(self, places: dict[str, np.ndarray], chosen: np.ndarray, symmetries: np.ndarray) -> dict[str, Tiles]:
        return {name: self._sensor(name, where[chosen], symmetries) for name, where in places.items()}

    def _sensor(self, name: str, where: np.ndarray, symmetries: np.ndarray) -> Tiles:
        sensor, pixels, is_valid = self._archive.sensors[name], [], []
        missing = {(str(s), int(r)) for dates in where for s, r in dates if (name, str(s), int(r)) not in self._tiles}
        for shard in {s for s, _ in missing}:
            rows = np.array(sorted(r for s, r in missing if s == shard))
            for row, stored, valid in zip(rows, *self._archive.read(shard, name, rows)):
                self._tiles[name, shard, int(row)] = stored, valid > 0
        for dates, symmetry in zip(where, symmetries):
            found = [self._tiles[name, str(shard), int(row)] for shard, row in dates]
            pixels.append(np.stack([dihedral(stored, symmetry) for stored, _ in found]))
            is_valid.append(np.stack([dihedral(valid, symmetry) for _, valid in found]))
        physical, dates = sensor.to_physical(np.stack(pixels)), where.shape[:2]
        return to_tiles(SensorArrays(sensor, physical, np.stack(is_valid), np.ones(dates, bool), np.full(dates, np.nan)))


def _loss(kind: str, predicted: Tensor, labels: Tensor) -> Tensor:
    if kind == "class":
        return F.cross_entropy(predicted, labels.long())
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(predicted[:, 0], labels.float())
    return F.mse_loss(predicted[:, 0], labels.float())


def _answer(kind: str, predicted: Tensor) -> Tensor:
    return predicted.argmax(-1).double() if kind == "class" else predicted[:, 0].sigmoid() if kind == "binary" else predicted[:, 0]
