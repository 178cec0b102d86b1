"""The global batch: what every rank holds of a tensor, put together with its gradient.

Decides that a loss over a batch's statistics is the same on any number of ranks, its gradient too: each rank computes the
loss of the whole batch from gathered features, and the ranks' gradients are then averaged as data parallelism does.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(x_BD: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of ranks, with gradients; every rank must hold as many."""
    return _Gather.apply(x_BD) if world_size() > 1 else x_BD


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """Return the sum of `x` over ranks, without gradient."""
    if world_size() == 1:
        return x
    summed = x.clone()
    dist.all_reduce(summed)
    return summed


def mean(x: Tensor) -> Tensor:
    """Return the mean of `x` over ranks, without gradient."""
    return x if world_size() == 1 else total(x) / world_size()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Each rank's loss is that of the whole batch; the sum over ranks is divided again when gradients are averaged.
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(world_size())[dist.get_rank()]
