"""What ranks tell one another, with gradients: the global batch, and places of experts that are shared out.

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


@torch.no_grad()
def largest(x: Tensor, is_asked: bool) -> Tensor:
    """Return the largest `x` of all ranks if it is asked for, else this rank's."""
    if is_asked and world_size() > 1:
        dist.all_reduce(x := x.clone(), dist.ReduceOp.MAX)
    return x


def to_owners(x_EPD: Tensor) -> Tensor:
    """Send the rows of every expert to the rank that has it; return (E / ranks, ranks * P, D), with gradients.

    Rank r has the r-th part of the experts. Gradients are the sum over ranks, each of its own loss.
    """
    ranks = world_size()
    if ranks == 1:
        return x_EPD
    return _Exchange.apply(x_EPD).unflatten(0, (ranks, -1)).transpose(0, 1).flatten(1, 2)


def from_owners(x_EPD: Tensor) -> Tensor:
    """Send back what `to_owners` brought: (E / ranks, ranks * P, D) to (E, P, D)."""
    ranks = world_size()
    if ranks == 1:
        return x_EPD
    return _Exchange.apply(x_EPD.unflatten(1, (ranks, -1)).transpose(0, 1).flatten(0, 1))


class _Exchange(torch.autograd.Function):
    """The r-th part of the rows goes to rank r, and what rank r sent stands in its place: its own inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        given = x.contiguous()
        dist.all_to_all_single(taken := torch.empty_like(given), given)
        return taken

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Exchange.forward(None, gradients[0])


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
