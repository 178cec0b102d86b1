"""Batch norm over the global batch: the same numbers and gradients on any number of ranks. Legend: N rows, D features."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.distributed import world_size


class GlobalBatchNorm(nn.Module):
    """Standardise features over the rows of all ranks (Ioffe & Szegedy 2015, arXiv 1502.03167), in float32.

    In evaluation the running statistics of training are used. Every rank must hold as many rows.
    """

    running_mean_D: Tensor
    running_variance_D: Tensor

    def __init__(self, width: int, is_affine: bool = True, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.empty(width)) if is_affine else None
        self.bias = nn.Parameter(torch.empty(width)) if is_affine else None
        self.register_buffer("running_mean_D", torch.zeros(width))
        self.register_buffer("running_variance_D", torch.ones(width))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return (N, D) in the dtype of `x_ND`."""
        x = x_ND.float()
        mean, variance = self._moments(x) if self.training else (self.running_mean_D.float(), self.running_variance_D.float())
        y = (x - mean) * (variance + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.float() + self.bias.float()
        return y.to(x_ND.dtype)

    def _moments(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        count = len(x_ND) * world_size()
        mean = _sum(x_ND.sum(0)) / count
        variance = _sum((x_ND - mean).pow(2).sum(0)) / count
        with torch.no_grad():
            unbiased = variance * count / max(1, count - 1)
            self.running_mean_D.lerp_(mean.to(self.running_mean_D), self.momentum)
            self.running_variance_D.lerp_(unbiased.to(self.running_variance_D), self.momentum)
        return mean, variance


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    """Return the sum over ranks, with gradient."""
    return _Sum.apply(x) if world_size() > 1 else x
