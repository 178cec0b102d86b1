"""What the joint-embedding objectives share: an encoder, a head, two views, and features of the global batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.distributed import gather
from models.encoder import Encoder, EncoderConfig
from models.heads import MlpHead
from models.initialise import initialise
from models.objectives.two_views import Kind, View, sensors_of, two_views


@dataclass(frozen=True)
class JointConfig:
    """What the views are, and the weight of the experts' balance beside the objective."""

    views: Kind = "crops"
    balance_weight: float = 0.01


class JointEmbedding(nn.Module):
    """Two views of each sample through one encoder and one head; subclasses give the loss of the global batch.

    `encoder` is what is kept after training.
    """

    def __init__(
        self, encoder: EncoderConfig, config: Any, widths: Sequence[int], generator: torch.Generator | None, **head: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(encoder, generator)
        self.head = MlpHead([encoder.pooled_width, *widths], **head)
        initialise(self.head, generator)

    def loss(self, z0_ND: Tensor, z1_ND: Tensor) -> Tensor:
        """Return the scalar loss of the global batch's projections, float32."""
        raise NotImplementedError

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached objective/<sensor> and balance. The generator is used by drop_path only."""
        views = two_views(batch, self.config.views, self.encoder)
        made = [self.project(view, generator) for view in views]
        objective = self.loss(*(gather(z.float()) for z, _ in made))
        balance = torch.stack([b for _, b in made]).mean()
        loss = objective + self.config.balance_weight * balance
        return {"loss": loss, f"objective/{sensors_of(views)}": objective.detach(), "balance": balance.detach()}

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what the loss compares of embeddings, (B, D'), for health to look at."""
        return self.head(pooled_BD)

    def project(self, view: View, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the projections (N, D) of a view, and the balance loss."""
        pooled, balance = self.encoder.pooled(view[1], view[0], generator)
        return self.head(pooled), balance
