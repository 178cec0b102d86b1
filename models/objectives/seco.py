"""SeCo: seasonal contrast in three sub-spaces (Manas et al., ICCV 2021, arXiv 2103.16607).

Of three dates of a place, four views: the query is a crop of the first date, its keys are the second date augmented, a crop
of the third, and the first augmented. One sub-space ignores season and augmentation, one season only, one augmentation only.
Legend: N samples, M samples of all ranks, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.distributed import gather
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.heads import MlpHead
from models.initialise import initialise
from models.key_queue import KeyQueue
from models.moving import MovingAverage
from models.objectives.moco import info_nce
from models.objectives.two_views import View, at_date

NUM_SPACES = 3
NUM_DATES = 3
VIEWS = ((0, 0), (2, 1), (1, 2), (3, 0))
"""Crop and date of the query and of the keys 0, 1, 2; crops 0 and 1 are not augmented, crops 2 and 3 are."""


def seco_loss(queries: Sequence[Tensor], keys: Sequence[Sequence[Tensor]], queues: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the sum of three cross-entropies, a scalar; each is a mean over N.

    For sub-space i: queries[i] (N, D); keys[i], three (N, D), of which the i-th is the positive; queues[i] (K, D). In
    sub-spaces 1 and 2 the two other keys of every sample of the batch, the query's own among them, join the negatives.
    """
    losses = []
    for space, (query, found, queue) in enumerate(zip(queries, keys, queues, strict=True)):
        others = [gather(key.detach()) for number, key in enumerate(found) if space and number != space]
        losses.append(info_nce(query, found[space], torch.cat([queue, *others]), temperature))
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class SecoConfig:
    """Published: in each sub-space a queue of 16 384 keys and a head of two layers, as wide as the features, to 128."""

    queue_size: int = 16_384
    dim: int = 128
    temperature: float = 0.07
    momentum: float = 0.999
    balance_weight: float = 0.01


class Seco(nn.Module):
    """One encoder, its moving average, and for each sub-space a head, its moving average and a queue of positive keys.

    A batch holds three dates, and four crops of all of them, the last two augmented.
    """

    def __init__(self, encoder: EncoderConfig, config: SecoConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, generator)
        width = encoder.pooled_width
        self.heads = nn.ModuleList(MlpHead([width, width, config.dim], has_norm=False) for _ in range(NUM_SPACES))
        initialise(self.heads, generator)
        self.keys = MovingAverage(self._online())
        self.queues = nn.ModuleList(KeyQueue(config.queue_size, config.dim, generator) for _ in range(NUM_SPACES))

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached objective/<sensor> and balance."""
        asking, *answering = self._views(batch)
        pooled, balance = self.encoder.pooled(asking[1], asking[0], generator)
        queries = [head(pooled).float() for head in self.heads]
        keys = self.keys.run(lambda online: _project(online, answering), self.heads)
        objective = seco_loss(queries, keys, [queue.keys_KD.float() for queue in self._queues()], self.config.temperature)
        if self.training:
            for space, queue in enumerate(self._queues()):
                queue.wait(keys[space][space])
        loss = objective + self.config.balance_weight * balance
        return {"loss": loss, f"objective/{asking[0]}": objective.detach(), "balance": balance.detach()}

    def after_step(self, step: int, num_steps: int) -> None:
        """Move the key encoder and its heads, and let the step's positive keys join the queues."""
        self.keys.update(self._online(), self.config.momentum)
        for queue in self._queues():
            queue.advance()

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what the loss compares of embeddings in all sub-spaces, (B, D'), for health to look at."""
        return torch.cat([head(pooled_BD) for head in self.heads], -1)

    def _views(self, batch: Batch) -> list[View]:
        """Return the query's tiles and the three keys' of one sensor; sensors take turns."""
        names = [spec.name for spec in self.encoder.config.sensors if spec.name in batch.tiles]
        name = names[batch.index % len(names)]
        num_dates = batch.tiles[name].is_present.shape[1]
        if num_dates < NUM_DATES or len(batch.crops) < len(VIEWS):
            raise InputError(
                f"a batch has {num_dates} dates and {len(batch.crops)} crops, seco expects {NUM_DATES} and {len(VIEWS)}; "
                f"set view to three dates and stream.crops to four windows, two of them plain"
            )
        return [(name, at_date(batch.crops[crop].tiles[name], date)) for crop, date in VIEWS]

    def _queues(self) -> list[KeyQueue]:
        return list(self.queues)  # type: ignore[arg-type]

    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.heads])


def _project(online: Any, views: Sequence[View]) -> list[list[Tensor]]:
    """Return for each sub-space the keys (N, D) of all views."""
    encoder, heads = online
    pooled = [encoder.pooled(tiles, name)[0] for name, tiles in views]
    return [[head(features).float() for features in pooled] for head in heads]
