"""DINO: a student's crops match the sharpened, centred output of its moving average (Caron et al. 2021, arXiv 2104.14294)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.distributed import mean
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.moving import MovingAverage, cosine_momentum
from models.objectives.two_views import View, at_date, sensors_of


def dino_loss(
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Return the mean cross-entropy over all pairs of a teacher's crop with another crop of the student.

    student_logits: one (N, K) per crop, the two global crops first; teacher_logits: the two global ones, in that order,
    without gradient; center (K,) or (1, K) is taken off the teacher's before the softmax.
    """
    learnt = [F.log_softmax(logits / student_temperature, -1) for logits in student_logits]
    taught = [F.softmax((logits.detach() - center) / teacher_temperature, -1) for logits in teacher_logits]
    pairs = [-(t * s).sum(-1).mean() for i, t in enumerate(taught) for j, s in enumerate(learnt) if i != j]
    return torch.stack(pairs).mean()


@dataclass(frozen=True)
class DinoConfig:
    """Published: 65 536 prototypes, temperatures 0.1 and 0.04, centre 0.9, momentum from 0.996 to 1.

    The prototypes keep still for the first frozen_steps (one epoch in the paper).
    """

    hidden: int = 2048
    bottleneck: int = 256
    num_prototypes: int = 65_536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    center_momentum: float = 0.9
    momentum: float = 0.996
    frozen_steps: int = 0
    balance_weight: float = 0.01


class DinoHead(nn.Module):
    """Three layers with GELU, unit length, then cosines with unit prototypes."""

    def __init__(self, width: int, hidden: int, bottleneck: int, num_prototypes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)])
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, bottleneck))

    def forward(self, x_ND: Tensor, is_frozen: bool = False) -> Tensor:
        """Return logits (N, K)."""
        x_ND = x_ND.to(self.prototypes.dtype)
        for layer in self.layers[:-1]:
            x_ND = F.gelu(layer(x_ND))
        prototypes = self.prototypes.detach() if is_frozen else self.prototypes
        return F.linear(F.normalize(self.layers[-1](x_ND), dim=-1), F.normalize(prototypes, dim=-1))


class Dino(nn.Module):
    """Student and its moving average; the batch's first two crops are the global ones, which alone the teacher sees."""

    center_K: Tensor
    num_done: Tensor

    def __init__(self, encoder: EncoderConfig, config: DinoConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, generator)
        self.head = DinoHead(encoder.pooled_width, config.hidden, config.bottleneck, config.num_prototypes)
        initialise(self.head, generator)
        self.teacher = MovingAverage(self._online())
        self.register_buffer("center_K", torch.zeros(config.num_prototypes))
        self.register_buffer("num_done", torch.zeros((), dtype=torch.long))
        self._seen: list[Tensor] = []

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached objective/<sensor>, balance, entropy of the teacher's mean output (0: collapsed)."""
        config, views = self.config, self._views(batch)
        is_frozen = int(self.num_done) < config.frozen_steps
        learnt, balances = [], []
        for name, tiles in views:
            pooled, balance = self.encoder.pooled(tiles, name, generator)
            learnt.append(self.head(pooled, is_frozen).float())
            balances.append(balance)
        taught = [self.teacher.run(partial(_logits, view=view), self.head).float() for view in views[:2]]
        temperatures = config.student_temperature, config.teacher_temperature
        objective = dino_loss(learnt, taught, self.center_K.float(), *temperatures)
        if self.training:
            self._seen.append(mean(torch.cat(taught).mean(0)))
        average = F.softmax((torch.cat(taught) - self.center_K.float()) / config.teacher_temperature, -1).mean(0)
        entropy = -(average * average.clamp_min(1e-12).log()).sum()
        balance = torch.stack(balances).mean()
        loss = objective + config.balance_weight * balance
        return {
            "loss": loss,
            f"objective/{sensors_of(views)}": objective.detach(),
            "balance": balance.detach(),
            "entropy": entropy.detach(),
        }

    @torch.no_grad()
    def after_step(self, step: int, num_steps: int) -> None:
        """Move the teacher and its centre."""
        self.teacher.update(self._online(), cosine_momentum(self.config.momentum, step, num_steps))
        self.center_K.lerp_(torch.stack(self._seen).mean(0).to(self.center_K), 1 - self.config.center_momentum)
        self._seen = []
        self.num_done += 1

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what the loss compares of embeddings, (B, D'), for health to look at."""
        return self.head(pooled_BD)

    def _views(self, batch: Batch) -> list[View]:
        if len(batch.crops) < 2:
            raise InputError(f"a batch has {len(batch.crops)} crops, dino expects two global ones and more; set stream.crops")
        names = [spec.name for spec in self.encoder.config.sensors if spec.name in batch.tiles]
        name = names[batch.index % len(names)]
        return [(name, at_date(crop.tiles[name], 0)) for crop in batch.crops]

    def _online(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.head])


def _logits(online: Any, view: View) -> Tensor:
    encoder, head = online
    return head(encoder.pooled(view[1], view[0])[0])
