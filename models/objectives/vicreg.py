"""VICReg: views agree, features keep their spread and share nothing (Bardes et al. 2022, arXiv 2105.04906)."""

import torch
import torch.nn.functional as F
from torch import Tensor

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
