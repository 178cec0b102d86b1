"""What the transformers share: the two-layer network and stochastic depth. Legend: B batch, N tokens, D width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two-layer GELU network; returns no balance loss so that experts can stand in its place."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.project = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor, is_key_BN: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.project(F.gelu(self.expand(x_BND))), None


def thin(change_BND: Tensor, drop: float, generator: torch.Generator | None) -> Tensor:
    """Drop the change of a share `drop` of the samples and scale up the rest (Huang et al. 2016, arXiv 1603.09382)."""
    if not drop:
        return change_BND
    if generator is None:
        raise ValueError("drop_path > 0 in training needs a generator")
    is_kept = torch.rand(len(change_BND), 1, 1, generator=generator, device=generator.device) < 1 - drop
    return change_BND * (is_kept / (1 - drop)).to(change_BND)
