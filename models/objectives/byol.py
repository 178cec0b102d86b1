"""BYOL: predict what a slowly moving copy of oneself makes of another view (Grill et al. 2020, arXiv 2006.07733)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.heads import MlpHead
from models.initialise import initialise
from models.moving import MovingAverage, cosine_momentum
from models.objectives.joint import JointConfig
from models.objectives.two_views import View, pooled_view, sensors_of, two_views


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of unit vectors, 2 - 2 cos, a scalar mean over N of (N, D); `target` carries no gradient."""
    return (2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1)).mean()


@dataclass(frozen=True)
class ByolConfig(JointConfig):
    """Published: two layers of 4096 to 256 for projector and predictor, momentum from 0.996 (1000 epochs) to 1."""

    hidden: int = 4096
    dim: int = 256
    momentum: float = 0.996


class Byol(nn.Module):
    """Online encoder, projector and predictor; the target is the moving average of the first two."""

    def __init__(self, encoder: EncoderConfig, config: ByolConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, generator)
        self.projector = MlpHead([encoder.pooled_width, config.hidden, config.dim])
        self.predictor = MlpHead([config.dim, config.hidden, config.dim])
        for head in (self.projector, self.predictor):
            initialise(head, generator)
        self.target = MovingAverage(self._online())

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached objective/<sensor> (both directions added) and balance."""
        views = self.views(batch, generator)
        predictions, targets, balances = [], [], []
        for view in views:
            pooled, balance = pooled_view(self.encoder, view, generator)
            predictions.append(self.predictor(self.projector(pooled)).float())
            targets.append(self.target.run(partial(_project, view=view), self.predictor).float())
            balances.append(balance)
        objective = byol_loss(predictions[0], targets[1]) + byol_loss(predictions[1], targets[0])
        balance = torch.stack(balances).mean()
        loss = objective + self.config.balance_weight * balance
        return {"loss": loss, f"objective/{sensors_of(views)}": objective.detach(), "balance": balance.detach()}

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[View, View]:
        """Return the two views that predict each other."""
        return two_views(batch, self.config.views, self.encoder)

    def after_step(self, step: int, num_steps: int) -> None:
        self.target.update(self._online(), cosine_momentum(self.config.momentum, step, num_steps))

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what the loss compares of embeddings, (B, D'), for health to look at."""
        return self.projector(pooled_BD)

    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.projector])


def _project(online: Any, view: View) -> Tensor:
    encoder, projector = online
    return projector(pooled_view(encoder, view)[0])
