"""ResNet (He et al. 2016, arXiv 1512.03385) over a grid of tokens, the backbone of the contrastive lineage.

This file decides the residual stages; what leads from pixels to tokens (7 x 7 convolution and pooling) is
`stems/resnet.py`. As commonly trained ("v1.5"): the stride of a bottleneck is in its 3 x 3 convolution.
Legend: B batch, Y X tokens, D width.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.norms import GlobalBatchNorm

SHAPES = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}
"""Depth -> blocks of each stage, and how many times wider a block's end is than its middle."""


@dataclass(frozen=True)
class ResnetConfig:
    """Shape of the backbone: four stages, each of twice the width on half the grid. `embed_dim` is the width of tokens.

    With embed_dim 64 and a stem for RGB: 11,176,512 (depth 18) and 23,508,032 parameters (depth 50), as published without
    the classifier.
    """

    depth: Literal[18, 50] = 50
    embed_dim: int = 64
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        if self.depth not in SHAPES or self.embed_dim < 1:
            raise InputError(f"resnet has depth {self.depth} and embed_dim {self.embed_dim}, expected depth 18 or 50 and 1 or more")

    @property
    def blocks(self) -> tuple[int, ...]:
        return SHAPES[self.depth][0]

    @property
    def expansion(self) -> int:
        return SHAPES[self.depth][1]

    def width(self, stage: int) -> int:
        return int(self.embed_dim * 2**stage * self.expansion)

    @property
    def num_stages(self) -> int:
        return len(self.blocks)

    @property
    def stride(self) -> int:
        """Tokens along one side of a cell of the last map."""
        return int(2 ** (len(self.blocks) - 1))


class Convolution(nn.Conv2d):
    """A convolution with an odd kernel and no bias: ceil(inputs / stride) outputs, each about `stride` inputs of its own."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=(kernel - stride + 1) // 2, bias=False)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """Draw normal weights that keep the variance of gradients under ReLU (He et al. 2015, arXiv 1502.01852)."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu", generator=generator)


class Block(nn.Module):
    """Two 3 x 3 convolutions, or a 3 x 3 between two 1 x 1 where there is expansion, around a residual."""

    def __init__(self, inputs: int, middle: int, expansion: int, stride: int) -> None:
        super().__init__()
        outputs = middle * expansion
        shapes = [(inputs, middle, 3, stride), (middle, outputs, 3, 1)]
        if expansion > 1:
            shapes = [(inputs, middle, 1, 1), (middle, middle, 3, stride), (middle, outputs, 1, 1)]
        self.convolutions = nn.ModuleList(Convolution(*shape) for shape in shapes)
        self.norms = nn.ModuleList(GlobalBatchNorm(shape[1]) for shape in shapes)
        is_changed = stride > 1 or inputs != outputs
        self.shortcut = nn.Sequential(Convolution(inputs, outputs, 1, stride), GlobalBatchNorm(outputs)) if is_changed else None

    def forward(self, x_BDYX: Tensor) -> Tensor:
        change = x_BDYX
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms)):
            change = norm(convolution(F.relu(change) if index else change))
        return F.relu(change + (x_BDYX if self.shortcut is None else self.shortcut(x_BDYX)))


class Resnet(nn.Module):
    """Tokens to one map per stage."""

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.embed_dim, *map(config.width, range(config.num_stages))]
        self.blocks = nn.ModuleList(
            Block(widths[stage + bool(index)], config.embed_dim * 2**stage, config.expansion, 1 + (stage > 0 and index == 0))
            for stage, depth in enumerate(config.blocks)
            for index in range(depth)
        )

    def forward(self, tokens_BYXD: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
        """Return each stage's map (B, Y, X, D) and, as there are no experts, a balance loss of 0 (float32).

        Nothing is drawn from the generator.
        """
        maps, blocks = [], iter(self.blocks)
        x_BDYX = tokens_BYXD.permute(0, 3, 1, 2)
        for depth in self.config.blocks:
            for block in islice(blocks, depth):
                x_BDYX = block(x_BDYX)
            maps.append(x_BDYX.permute(0, 2, 3, 1))
        return maps, torch.zeros((), device=tokens_BYXD.device)
