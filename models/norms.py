"""Batch norm over the global batch: the same numbers and gradients on any number of ranks. Legend: N rows, D features."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.distributed import world_size


class GlobalBatchNorm(nn.Module):
    """Standardise features over the rows, or the images' pixels, of all ranks (Ioffe & Szegedy 2015, arXiv 1502.03167).

    In evaluation the running statistics of training are used. Statistics are float32 whatever the module is cast to: a step
    of the running mean is lost in bf16. Every rank must hold as many rows.
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GlobalBatchNorm":
        """Move and cast the parameters; the running statistics move only."""
        mean_D, variance_D = self.running_mean_D, self.running_variance_D
        super()._apply(fn, recurse)
        self.running_mean_D = mean_D.to(self.running_mean_D.device)
        self.running_variance_D = variance_D.to(self.running_variance_D.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, D) or (N, D, Y, X) in the dtype of `x`."""
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        running = self.running_mean_D, self.running_variance_D
        if world_size() == 1 or not self.training:
            return F.batch_norm(x, *running, weight, bias, self.training, self.momentum, self.eps)
        mean_D, variance_D = self._moments(x.float())
        y = (x.float() - _as(mean_D, x)) * _as((variance_D + self.eps).rsqrt(), x)
        y = y if weight is None or bias is None else y * _as(weight, x) + _as(bias, x)
        return y.to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance (D,) over all ranks, and let the running ones follow."""
        rows = [dim for dim in range(x.ndim) if dim != 1]
        count = x.numel() // x.shape[1] * world_size()
        mean_D = _sum(x.sum(rows)) / count
        variance_D = _sum((x - _as(mean_D, x)).pow(2).sum(rows)) / count
        with torch.no_grad():
            self.running_mean_D.lerp_(mean_D, self.momentum)
            self.running_variance_D.lerp_(variance_D * count / max(1, count - 1), self.momentum)
        return mean_D, variance_D


def _as(feature_D: Tensor, x: Tensor) -> Tensor:
    """Return (D,) in a shape that broadcasts over (N, D, ...)."""
    return feature_D.view(1, -1, *[1] * (x.ndim - 2))


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
    return _Sum.apply(x)
