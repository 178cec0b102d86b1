"""Moving rows about, with the inverse move as gradient.

This file decides nothing about where rows go (see `moe.py`, `swin.py`). Autograd's own gradient of a gather is a
scatter-add: slow on CPU, and on CUDA in an order that changes from run to run. Where no row is read twice, the gradient
is itself a gather, exact and repeatable.
"""

from typing import Any

import torch
from torch import Tensor


def take(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Return (B, K, D), of each sample the rows at `index_BK`."""
    return x_BND.gather(1, index_BK[..., None].expand(-1, -1, x_BND.shape[-1]))


def gather_rows(x: Tensor, index: Tensor, inverse: Tensor, has_inverse: Tensor | None = None, dim: int = 0) -> Tensor:
    """Return `x.index_select(dim, index)` for an `index` that is one-to-one where it counts.

    inverse      for each row of `x`, the output row that read it
    has_inverse  bool, False for rows of `x` nobody (who is listened to) read; None where every row was read
    """
    return _GatherRows.apply(x, index, inverse, has_inverse, dim)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor, has_inverse: Tensor | None, dim: int) -> Tensor:
        ctx.save_for_backward(inverse, has_inverse)
        ctx.dim = dim
        return x.index_select(dim, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        inverse, has_inverse = ctx.saved_tensors
        gradient = gradients[0].index_select(ctx.dim, inverse)
        if has_inverse is not None:
            shape = [1] * gradient.ndim
            shape[ctx.dim] = -1
            gradient.masked_fill_(~has_inverse.view(shape), 0)
        return gradient, None, None, None, None
