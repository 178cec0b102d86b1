"""Barlow Twins: each feature agrees between views and with no other feature (Zbontar et al. 2021, arXiv 2103.03230)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.encoder import EncoderConfig
from models.objectives.joint import JointConfig, JointEmbedding

EPS = 1e-12


def barlow_twins_loss(z0: Tensor, z1: Tensor, redundancy_weight: float) -> Tensor:
    """Return sum_i (1 - C_ii)^2 + redundancy_weight * sum_{i != j} C_ij^2, a scalar.

    C = standardised z0^T z1 / N over the batch, z0 and z1 (N, D). Features are standardised with the variance over N, as the
    released code's batch norm does but without its 1e-5, so that scale and offset of a feature do not matter at all.
    """
    correlation = standardise(z0).T @ standardise(z1) / len(z0)
    on = correlation.diagonal()
    off = correlation.pow(2).sum() - on.pow(2).sum()
    return (1 - on).pow(2).sum() + redundancy_weight * off


def standardise(z_ND: Tensor) -> Tensor:
    """Return features of zero mean and unit variance over the batch; constant ones become 0."""
    centred = z_ND - z_ND.mean(0)
    return centred * (centred.pow(2).mean(0) + EPS).rsqrt()


@dataclass(frozen=True)
class BarlowTwinsConfig(JointConfig):
    """Published: three layers of 8192, redundancy weight 0.0051."""

    dim: int = 8192
    redundancy_weight: float = 0.0051


class BarlowTwins(JointEmbedding):
    """With views "sensors" the two sensors of a place are the twins."""

    def __init__(self, encoder: EncoderConfig, config: BarlowTwinsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(encoder, config, (config.dim,) * 3, generator)

    def loss(self, z0_ND: Tensor, z1_ND: Tensor) -> Tensor:
        return barlow_twins_loss(z0_ND, z1_ND, self.config.redundancy_weight)
