"""MoCo: a query finds its key among many, keys made by a slowly moving copy (He et al. 2020, arXiv 1911.05722)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.distributed import gather, world_size
from models.encoder import Encoder, EncoderConfig
from models.heads import MlpHead
from models.initialise import initialise
from models.key_queue import KeyQueue
from models.moving import MovingAverage, cosine_momentum
from models.objectives.joint import JointConfig
from models.objectives.two_views import View, sensors_of, two_views


def info_nce(query: Tensor, positive_key: Tensor, negative_keys: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each query's key, a scalar mean over N.

    query, positive_key (N, D), row i belonging together; negative_keys (K, D), the same for all queries. All are scaled to
    unit length here; keys carry no gradient.
    """
    query, positive_key, negative_keys = (F.normalize(x, dim=-1) for x in (query, positive_key.detach(), negative_keys.detach()))
    positive_N1 = (query * positive_key).sum(-1, keepdim=True)
    logits = torch.cat([positive_N1, query @ negative_keys.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def in_batch_info_nce(query: Tensor, keys: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Return MoCo v3's loss for one direction: the other keys of the batch are the negatives, times 2 temperature.

    query (N, D); keys (M, D) of the global batch, those of these queries from row `first` on (Chen et al. 2021,
    arXiv 2104.02057).
    """
    query, keys = F.normalize(query, dim=-1), F.normalize(keys.detach(), dim=-1)
    own = torch.arange(len(query), device=query.device) + first
    return 2 * temperature * F.cross_entropy(query @ keys.T / temperature, own)


@dataclass(frozen=True)
class MocoConfig(JointConfig):
    """Published (v2): a queue of 65 536 keys, temperature 0.2, momentum 0.999, a head of two layers to 128."""

    queue_size: int = 65_536
    hidden: int = 2048
    dim: int = 128
    temperature: float = 0.2
    momentum: float = 0.999


class Moco(nn.Module):
    """MoCo v2 (Chen et al. 2020, arXiv 2003.04297): the first view asks, keys of earlier steps are the negatives.

    The queue is the same on all ranks: keys join it in the order of ranks once a step is done. There is no batch norm in the
    head, and a backbone's sees the global batch, so keys need no shuffling between ranks. With views "dates" it is MoCo with
    temporal positives (Ayush et al. 2021, arXiv 2011.09980).
    """

    def __init__(self, encoder: EncoderConfig, config: MocoConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, generator)
        self.head = MlpHead([encoder.pooled_width, config.hidden, config.dim], has_norm=False)
        initialise(self.head, generator)
        self.keys = MovingAverage(self._online())
        self.queue = KeyQueue(config.queue_size, config.dim, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached objective/<sensor> and balance."""
        views = asking, answering = two_views(batch, self.config.views, self.encoder)
        pooled, balance = self.encoder.pooled(asking[1], asking[0], generator)
        query = self.head(pooled).float()
        key = self.keys.run(partial(_project, view=answering), self.head).float()
        objective = info_nce(query, key, self.queue.keys_KD.float(), self.config.temperature)
        if self.training:
            self.queue.wait(key)
        loss = objective + self.config.balance_weight * balance
        return {"loss": loss, f"objective/{sensors_of(views)}": objective.detach(), "balance": balance.detach()}

    def after_step(self, step: int, num_steps: int) -> None:
        """Move the key encoder, and let the step's keys take the places of the oldest."""
        self.keys.update(self._online(), self.config.momentum)
        self.queue.advance()

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what the loss compares of embeddings, (B, D'), for health to look at."""
        return self.head(pooled_BD)

    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.head])


@dataclass(frozen=True)
class MocoV3Config(JointConfig):
    """Published (ViT): three layers of 4096 to 256, a predictor of two, temperature 0.2, momentum from 0.99 to 1, and

    has_frozen_stem: the patch embedding keeps its first, random weights, without which large batches were unstable.
    """

    hidden: int = 4096
    dim: int = 256
    temperature: float = 0.2
    momentum: float = 0.99
    has_frozen_stem: bool = False


class MocoV3(nn.Module):
    """MoCo v3 (arXiv 2104.02057): no queue, the keys of the global batch are the negatives, both directions."""

    def __init__(self, encoder: EncoderConfig, config: MocoV3Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, generator)
        self.encoder.stem.requires_grad_(not config.has_frozen_stem)
        self.head = MlpHead([encoder.pooled_width, config.hidden, config.hidden, config.dim], last_norm=True)
        self.predictor = MlpHead([config.dim, config.hidden, config.dim], last_norm=True)
        for head in (self.head, self.predictor):
            initialise(head, generator)
        self.keys = MovingAverage(self._online())

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached objective/<sensor> and balance."""
        views = two_views(batch, self.config.views, self.encoder)
        queries, keys, balances = [], [], []
        for view in views:
            pooled, balance = self.encoder.pooled(view[1], view[0], generator)
            queries.append(self.predictor(self.head(pooled)).float())
            keys.append(gather(self.keys.run(partial(_project, view=view), self.head).float()))
            balances.append(balance)
        first = len(queries[0]) * (dist.get_rank() if world_size() > 1 else 0)
        both = [in_batch_info_nce(queries[i], keys[1 - i], self.config.temperature, first) for i in (0, 1)]
        objective, balance = both[0] + both[1], torch.stack(balances).mean()
        loss = objective + self.config.balance_weight * balance
        return {"loss": loss, f"objective/{sensors_of(views)}": objective.detach(), "balance": balance.detach()}

    def after_step(self, step: int, num_steps: int) -> None:
        self.keys.update(self._online(), cosine_momentum(self.config.momentum, step, num_steps))

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what the loss compares of embeddings, (B, D'), for health to look at."""
        return self.head(pooled_BD)

    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.head])


def _project(online: Any, view: View) -> Tensor:
    encoder, head = online
    return head(encoder.pooled(view[1], view[0])[0])
