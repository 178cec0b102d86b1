"""Heads between an encoder's embedding and a loss; they are not kept after training. Legend: N samples, D width."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.norms import GlobalBatchNorm


class MlpHead(nn.Module):
    """Linear layers of the given widths, batch norm and ReLU between them.

    last_norm: also a batch norm at the end, without scale and offset (SimCLR's code, MoCo v3).
    """

    def __init__(self, widths: Sequence[int], has_norm: bool = True, last_norm: bool = False) -> None:
        super().__init__()
        last = len(widths) - 2
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=i == last or not has_norm) for i, (a, b) in enumerate(pairwise(widths)))
        self.norms = nn.ModuleList(GlobalBatchNorm(width) for width in widths[1:-1]) if has_norm else None
        self.last_norm = GlobalBatchNorm(widths[-1], is_affine=False) if last_norm else None

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return (N, D) in the parameters' dtype."""
        first: Any = self.layers[0]
        x_ND = x_ND.to(first.weight.dtype)
        for index, layer in enumerate(self.layers):
            x_ND = layer(x_ND)
            if index < len(self.layers) - 1:
                x_ND = F.relu(self.norms[index](x_ND) if self.norms is not None else x_ND)
        return self.last_norm(x_ND) if self.last_norm is not None else x_ND
