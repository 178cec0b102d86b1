"""Swin transformer (Liu et al. 2021, arXiv 2103.14030) over a grid of tokens, optionally with experts.

This file decides the shared backbone: window attention with relative position bias, patch merging, pre-norm blocks.
Windows come from `windows.py`, experts from `moe.py`, tokens from `stems.py`.
Legend: B batch, Y X tokens, N = Y*X, W windows, n tokens of one window, h heads, D width, d width of one head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.gather import gather_rows
from models.layers import Mlp, thin
from models.moe import MoEConfig, build_experts
from models.windows import WindowLayout, window_layout


@dataclass(frozen=True)
class SwinConfig:
    """Shape of the backbone. Width doubles and the grid halves from stage to stage; window is in tokens.

    Experts replace the MLP of every other block (the second, the fourth, ...) of `moe_stages`, counted from 0. The
    default size trains at about 170 samples a second on one CPU core in bf16 (grid 16 x 16, Sentinel-1 and 2).
    """

    embed_dim: int = 48
    depths: tuple[int, ...] = (2, 2, 6)
    num_heads: tuple[int, ...] = (2, 4, 8)
    window: int = 4
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    moe: MoEConfig | None = None
    moe_stages: tuple[int, ...] = (2,)
    kind: Literal["swin"] = "swin"

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise InputError(f"swin has depths {self.depths} and num_heads {self.num_heads}, expected one each per stage")
        for stage, heads in enumerate(self.num_heads):
            if self.width(stage) % heads:
                raise InputError(f"swin stage {stage} has width {self.width(stage)}, expected a multiple of {heads} heads")
        if not 0 <= self.drop_path < 1 or self.window < 1:
            raise InputError(f"swin has drop_path {self.drop_path} and window {self.window}, expected [0, 1) and >= 1")
        if self.moe and not all(0 <= stage < len(self.depths) for stage in self.moe_stages):
            raise InputError(f"swin has moe_stages {self.moe_stages}, expected stages 0 to {len(self.depths) - 1}")

    def width(self, stage: int) -> int:
        return self.embed_dim * 2**stage

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def stride(self) -> int:
        """Tokens along one side of a cell of the last map."""
        return int(2 ** (len(self.depths) - 1))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias per head and relative position.

    Plain matrix products: at these lengths the fused CPU kernel's bf16 backward is several times slower (torch 2.13).
    """

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.position = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))

    def forward(self, x_BND: Tensor, layout: WindowLayout) -> Tensor:
        """Attend within windows; `x_BND` is the padded grid in window order, and so is the result."""
        batch, num_tokens, width = x_BND.shape
        per_window, heads = layout.size[0] * layout.size[1], self.num_heads
        qkv = self.qkv(x_BND).view(-1, per_window, 3, heads, width // heads)
        q_WhnD, k_WhnD, v_WhnD = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits_Whnn = (q_WhnD * (width // heads) ** -0.5) @ k_WhnD.transpose(-1, -2)
        bias_hnn = self.position[layout.bias_index_nn.flatten()].t().view(1, heads, per_window, per_window)
        if layout.mask_Wnn is None:
            logits_Whnn = logits_Whnn + bias_hnn
        else:
            bias_Whnn = bias_hnn + layout.mask_Wnn[:, None].to(bias_hnn.dtype)
            logits_Whnn = (logits_Whnn.view(batch, -1, heads, per_window, per_window) + bias_Whnn).view_as(logits_Whnn)
        # torch accumulates a bf16 softmax in float32; asking for a float32 result would only double the memory traffic.
        mixed_WhnD = logits_Whnn.softmax(-1) @ v_WhnD
        return self.project(mixed_WhnD.transpose(1, 2).reshape(batch, num_tokens, width))


class Block(nn.Module):
    """Window attention, then MLP or experts; each after a LayerNorm and around a residual."""

    def __init__(self, config: SwinConfig, stage: int, index: int, drop: float) -> None:
        super().__init__()
        width = config.width(stage)
        self.window, self.is_shifted, self.drop = config.window, index % 2 == 1, drop
        self.norm_attention = nn.LayerNorm(width)
        self.attention = WindowAttention(width, config.num_heads[stage], config.window)
        self.norm_mlp = nn.LayerNorm(width)
        hidden = round(width * config.mlp_ratio)
        has_experts = config.moe is not None and stage in config.moe_stages and index % 2 == 1
        self.mlp = build_experts(config.moe, width, hidden) if config.moe and has_experts else Mlp(width, hidden)

    def forward(
        self, x_BND: Tensor, grid: tuple[int, int], layout: WindowLayout, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the tokens and the experts' balance loss, if there are experts; the layout is `layout`'s."""
        x_BND = x_BND + self._thin(self._attend(self.norm_attention(x_BND), grid, layout), generator)
        change_BND, balance = self.mlp(self.norm_mlp(x_BND))
        return x_BND + self._thin(change_BND, generator), balance

    def layout(self, grid: tuple[int, int], device: torch.device) -> WindowLayout:
        """Return the windows over `grid`. Not looked up in `forward`, because torch.compile traces into caches."""
        return window_layout(grid, self.window, self.is_shifted, device)

    def _attend(self, x_BND: Tensor, grid: tuple[int, int], layout: WindowLayout) -> Tensor:
        is_padded = layout.padded != grid
        if is_padded:
            x_BYXD = x_BND.unflatten(1, grid)
            x_BND = F.pad(x_BYXD, (0, 0, 0, layout.padded[1] - grid[1], 0, layout.padded[0] - grid[0])).flatten(1, 2)
        if layout.order_N is None or layout.inverse_N is None:
            x_BND = self.attention(x_BND, layout)
        else:
            x_BND = gather_rows(x_BND, layout.order_N, layout.inverse_N, dim=1)
            x_BND = gather_rows(self.attention(x_BND, layout), layout.inverse_N, layout.order_N, dim=1)
        return x_BND.unflatten(1, layout.padded)[:, : grid[0], : grid[1]].flatten(1, 2) if is_padded else x_BND

    def _thin(self, change_BND: Tensor, generator: torch.Generator | None) -> Tensor:
        return thin(change_BND, self.drop if self.training else 0.0, generator)


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one of twice the width; an odd grid is padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BYXD: Tensor) -> Tensor:
        """Return (B, ceil(Y / 2), ceil(X / 2), 2 D)."""
        batch, rows, columns, width = x_BYXD.shape
        if rows % 2 or columns % 2:
            x_BYXD = F.pad(x_BYXD, (0, 0, 0, columns % 2, 0, rows % 2))
        x = x_BYXD.view(batch, (rows + 1) // 2, 2, (columns + 1) // 2, 2, width)
        return self.reduce(self.norm(x.transpose(2, 3).flatten(3)))


class Swin(nn.Module):
    """Tokens to one map per stage."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        drops = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").split(list(config.depths))
        self.blocks = nn.ModuleList(
            Block(config, stage, index, float(drop))
            for stage in range(len(config.depths))
            for index, drop in enumerate(drops[stage])
        )
        self.merges = nn.ModuleList(PatchMerging(config.width(stage)) for stage in range(len(config.depths) - 1))
        self.norm = nn.LayerNorm(config.width(len(config.depths) - 1))

    def forward(self, tokens_BYXD: Tensor, generator: torch.Generator | None = None) -> tuple[list[Tensor], Tensor]:
        """Return each stage's map (B, Y, X, D), the last one normalised, and the sum of balance losses (float32)."""
        maps: list[Tensor] = []
        balance = torch.zeros((), device=tokens_BYXD.device)
        x_BYXD = tokens_BYXD
        blocks: Iterator[Any] = iter(self.blocks)
        for stage, depth in enumerate(self.config.depths):
            if stage:
                x_BYXD = self.merges[stage - 1](x_BYXD)
            grid = (x_BYXD.shape[1], x_BYXD.shape[2])
            x_BND = x_BYXD.flatten(1, 2)
            for block in islice(blocks, depth):
                x_BND, block_balance = block(x_BND, grid, block.layout(grid, x_BND.device), generator)
                balance = balance if block_balance is None else balance + block_balance
            x_BYXD = x_BND.unflatten(1, grid)
            maps.append(x_BYXD)
        maps[-1] = self.norm(maps[-1])
        return maps, balance
