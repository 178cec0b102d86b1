"""Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) over any set of tokens, optionally with experts.

This file decides pre-norm blocks, attention among the tokens that are there, class token and registers. Positions come
from `positions.py`, tokens from `stems.py`, experts from `moe.py`; whoever calls decides which tokens are given.
Legend: B batch, N tokens, P prefix tokens (class token and registers), h heads, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.layers import Mlp, thin
from models.moe import MoEConfig, build_experts

NORM_EPS = 1e-6
NUM_TAPS = 4
"""Depths, evenly spaced and the last among them, whose outputs are returned."""
FUSED_FROM = 600
"""Tokens from which the CPU's fused attention kernel is used in bf16: by then the weights that products keep fill memory."""
_fused_from = FUSED_FROM
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, depth and heads of the published sizes (tiny and small: Touvron et al. 2021)."""


@dataclass(frozen=True)
class VitConfig:
    """Shape of the transformer. Experts replace the MLP of every other block, the second, the fourth, ..."""

    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_ratio: float = 4.0
    has_class_token: bool = True
    num_registers: int = 0
    drop_path: float = 0.0
    moe: MoEConfig | None = None
    kind: Literal["vit"] = "vit"

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise InputError(f"vit has embed_dim {self.embed_dim}, expected a multiple of its {self.num_heads} heads")
        if self.depth < 1 or self.num_registers < 0 or not 0 <= self.drop_path < 1:
            raise InputError(
                f"vit has depth {self.depth}, num_registers {self.num_registers} and drop_path {self.drop_path}, "
                f"expected >= 1, >= 0 and [0, 1)"
            )

    def width(self, stage: int) -> int:
        return self.embed_dim

    @property
    def num_stages(self) -> int:
        return len(self.taps)

    @property
    def stride(self) -> int:
        """Tokens along one side of a cell of the last map."""
        return 1

    @property
    def taps(self) -> tuple[int, ...]:
        """Numbers of the blocks whose outputs are returned, from 0."""
        count = min(NUM_TAPS, self.depth)
        return tuple((i + 1) * self.depth // count - 1 for i in range(count))


def vit_size(name: str, **changes: object) -> VitConfig:
    """Return the configuration of a published size."""
    if name not in SIZES:
        raise InputError(f"vit size '{name}' is unknown (known: {', '.join(SIZES)})")
    width, depth, heads = SIZES[name]
    return VitConfig(**{"embed_dim": width, "depth": depth, "num_heads": heads, **changes})  # type: ignore[arg-type]


class Attention(nn.Module):
    """Multi-head attention of all tokens on those that count as keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, is_key_BN: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if is_key_BN is None else is_key_BN[:, None, None, :]
        return self.project(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def attend(q_BhNd: Tensor, k_BhMd: Tensor, v_BhMd: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k / sqrt(d)) v; `mask` is True where a key may be looked at, and nothing is 0.

    On CPU in bf16 by products in bf16: torch's own plain path (2.13) makes float32 of them, and the fused kernel takes 1.5 times
    as long at 513 tokens, five times at 65 (tests/bench/bench_attention.py).
    """
    is_short = q_BhNd.shape[-2] * k_BhMd.shape[-2] < _fused_from**2
    if not (q_BhNd.is_cpu and q_BhNd.dtype == torch.bfloat16 and is_short):
        return F.scaled_dot_product_attention(q_BhNd, k_BhMd, v_BhMd, attn_mask=mask)
    score_BhNM = (q_BhNd * q_BhNd.shape[-1] ** -0.5) @ k_BhMd.transpose(-2, -1)
    if mask is None:
        return score_BhNM.softmax(-1) @ v_BhMd
    seen_BhNd = score_BhNM.masked_fill(~mask, torch.finfo(score_BhNM.dtype).min).softmax(-1) @ v_BhMd
    return seen_BhNd.masked_fill(~mask.any(-1, keepdim=True), 0)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Take the fused kernel inside however short a sequence is, as GPUs do: to count what they would keep."""
    global _fused_from
    _fused_from = 0
    try:
        yield
    finally:
        _fused_from = FUSED_FROM


class VitBlock(nn.Module):
    """Attention, then MLP or experts; each after a LayerNorm and around a residual."""

    def __init__(self, config: VitConfig, index: int, drop: float) -> None:
        super().__init__()
        width, hidden = config.embed_dim, round(config.embed_dim * config.mlp_ratio)
        self.drop = drop
        self.norm_attention = nn.LayerNorm(width, NORM_EPS)
        self.attention = Attention(width, config.num_heads)
        self.norm_mlp = nn.LayerNorm(width, NORM_EPS)
        self.mlp = build_experts(config.moe, width, hidden) if config.moe and index % 2 == 1 else Mlp(width, hidden)

    def forward(self, x_BND: Tensor, is_key_BN: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
        x_BND = x_BND + self._thin(self.attention(self.norm_attention(x_BND), is_key_BN), generator)
        change_BND, balance = self.mlp(self.norm_mlp(x_BND), is_key_BN)
        return x_BND + self._thin(change_BND, generator), balance

    def _thin(self, change_BND: Tensor, generator: torch.Generator | None) -> Tensor:
        return thin(change_BND, self.drop if self.training else 0.0, generator)


class Vit(nn.Module):
    """Tokens to tokens; what is done with places that have none is decided by the caller."""

    prefix_PD: Tensor

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        drops = [config.drop_path * index / max(1, config.depth - 1) for index in range(config.depth)]
        prefix_PD = torch.empty(config.has_class_token + config.num_registers, config.embed_dim)
        # A parameter without numbers cannot be gathered under ZeRO 3 (DeepSpeed 0.19).
        if len(prefix_PD):
            self.register_parameter("prefix_PD", nn.Parameter(prefix_PD))
        else:
            self.register_buffer("prefix_PD", prefix_PD)
        self.blocks = nn.ModuleList(VitBlock(config, index, drop) for index, drop in enumerate(drops))
        self.norm = nn.LayerNorm(config.embed_dim, NORM_EPS)

    def forward(
        self, tokens_BND: Tensor, is_key_BN: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the tokens (B, N, D) after each of `config.taps`, the last normalised; the prefix (B, P, D), normalised; and

        the sum of balance losses. Tokens that are no keys are not looked at by others; what becomes of them means nothing.
        """
        batch, num_prefix = tokens_BND.shape[0], len(self.prefix_PD)
        x_BND = torch.cat([self.prefix_PD.to(tokens_BND).expand(batch, -1, -1), tokens_BND], 1)
        if is_key_BN is not None:
            is_key_BN = F.pad(is_key_BN, (num_prefix, 0), value=True)
        balance = torch.zeros((), device=tokens_BND.device)
        outputs = []
        for index, block in enumerate(self.blocks):
            x_BND, block_balance = block(x_BND, is_key_BN, generator)
            balance = balance if block_balance is None else balance + block_balance
            if index in self.config.taps:
                outputs.append(x_BND[:, num_prefix:])
        x_BND = self.norm(x_BND)
        return [*outputs[:-1], x_BND[:, num_prefix:]], x_BND[:, :num_prefix], balance
