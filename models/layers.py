"""What networks share: the two-layer network, stochastic depth, a convolution that keeps variance. Legend: as in `vit.py`."""

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


class SteadyConv2d(nn.Conv2d):
    """Begins with variance 1 / inputs (LeCun et al. 1998): at the usual 0.02 values fade to nothing through narrow layers."""

    def draw(self, generator: torch.Generator | None) -> None:
        bound = (3 / (self.kernel_size[0] ** 2 * self.in_channels // self.groups)) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
