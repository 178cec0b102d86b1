"""SimCLR: two views of a sample attract each other, all others repel (Chen et al. 2020, arXiv 2002.05709)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoder import EncoderConfig
from models.objectives.joint import JointConfig, JointEmbedding


def nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy, a scalar: the mean over all 2 N views.

    z0, z1 (N, D): row i of both is one sample; they are scaled to unit length here. A view's positive is its other view,
    its negatives are the 2 (N - 1) views of other samples. The released code adds the means of both directions: twice this.
    """
    z_MD = F.normalize(torch.cat([z0, z1]), dim=-1)
    logits_MM = z_MD @ z_MD.T / temperature
    logits_MM = logits_MM.masked_fill(torch.eye(len(z_MD), dtype=torch.bool, device=z_MD.device), -torch.inf)
    positive = torch.arange(len(z_MD), device=z_MD.device).roll(len(z0))
    return F.cross_entropy(logits_MM, positive)


@dataclass(frozen=True)
class SimclrConfig(JointConfig):
    """Published: temperature 0.1, three layers to 128 with a batch norm at the end (the released code's default)."""

    hidden: int = 2048
    dim: int = 128
    temperature: float = 0.1


class Simclr(JointEmbedding):
    """With views "dates" it is temporal SimCLR: two dates of a place in place of two crops of an image."""

    def __init__(self, encoder: EncoderConfig, config: SimclrConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(encoder, config, (config.hidden, config.hidden, config.dim), generator, last_norm=True)

    def loss(self, z0_ND: Tensor, z1_ND: Tensor) -> Tensor:
        return nt_xent(z0_ND, z1_ND, self.config.temperature)
