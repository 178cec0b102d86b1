"""VICReg: views agree, features keep their spread and share nothing (Bardes et al. 2022, arXiv 2105.04906)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoder import EncoderConfig
from models.objectives.joint import JointConfig, JointEmbedding

EPS = 1e-4


def vicreg_loss(z0: Tensor, z1: Tensor, invariance_weight: float, variance_weight: float, covariance_weight: float) -> Tensor:
    """Return the weighted sum of invariance, variance and covariance terms of z0, z1 (N, D), a scalar.

    Invariance: mean squared difference. Variance: mean over D of max(0, 1 - sqrt(var + 1e-4)), averaged over the views as in
    the released code (the paper adds them: twice this). Covariance: squares off the diagonal summed and divided by D, added
    over the views. Variance and covariance divide by N - 1.
    """
    variance = torch.stack([F.relu(1 - (z.var(0) + EPS).sqrt()).mean() for z in (z0, z1)]).mean()
    covariance = off_diagonal_covariance(z0) + off_diagonal_covariance(z1)
    return invariance_weight * F.mse_loss(z0, z1) + variance_weight * variance + covariance_weight * covariance


def off_diagonal_covariance(z_ND: Tensor) -> Tensor:
    centred = z_ND - z_ND.mean(0)
    covariance = centred.T @ centred / (len(z_ND) - 1)
    return (covariance.pow(2).sum() - covariance.diagonal().pow(2).sum()) / z_ND.shape[1]


@dataclass(frozen=True)
class VicregConfig(JointConfig):
    """Published: an expander of three layers of 8192, weights 25, 25 and 1."""

    dim: int = 8192
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0


class Vicreg(JointEmbedding):
    """With views "sensors" the two sensors of a place are the branches."""

    def __init__(self, encoder: EncoderConfig, config: VicregConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(encoder, config, (config.dim,) * 3, generator)

    def loss(self, z0_ND: Tensor, z1_ND: Tensor) -> Tensor:
        weights = self.config.invariance_weight, self.config.variance_weight, self.config.covariance_weight
        return vicreg_loss(z0_ND, z1_ND, *weights)
