"""First values of every parameter, from a generator that is passed in.

This file decides them for all modules of this room; no module draws its own.
"""

import torch
from torch import nn

STD = 0.02


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fill matrices and tokens with a normal of std 0.02 cut at two std, biases with 0, norms with 1 (Liu et al. 2021).

    One-dimensional parameters called `weight` or `scale` are norms' and routers' scales; names beginning with `bias` are
    offsets. A module whose parameters begin otherwise, as convolutions of a ResNet do, has a method `draw`.
    """
    for name, parameter in module.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf.startswith("bias"):
            parameter.zero_()
        elif leaf in ("weight", "scale") and parameter.ndim == 1:
            parameter.fill_(1)
        else:
            nn.init.trunc_normal_(parameter, std=STD, a=-2 * STD, b=2 * STD, generator=generator)
    for part in module.modules():
        if callable(draw := getattr(part, "draw", None)):
            draw(generator)
