"""From the maps of every stage, sensor and date to an answer for every pixel.

A light form of UPerNet (Xiao et al. 2018, arXiv 1807.10221): pooled context on the last map, stages added from the deepest up,
all of them put together on the finest grid. Dates are compared as siamese networks do (Caye Daudt et al. 2018, arXiv 1810.08462):
the last date's map beside its difference from the first's. Where maps come from is not decided here.
Legend: B batch, T time, y x cells of a map, Y X pixels, D width of a map, H width of the head, K outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoders import PixelDecoder
from models.errors import InputError
from models.initialise import initialise
from models.layers import SteadyConv2d

POOLED_CELLS = (1, 2)
"""Sides of the grids on which the last map is averaged; the published 1, 2, 3, 6 are for maps that are not 4 to 16 cells wide."""
MIN_STD = 1e-3
"""Of a channel after a LayerNorm, below which it is not spread further."""


class DenseHead(nn.Module):
    """`widths`: sensor -> D of each stage's map; `num_dates`: of each sensor; `cell_px`: pixels along a cell of the finest map."""

    def __init__(
        self,
        widths: Mapping[str, Sequence[int]],
        num_dates: Mapping[str, int],
        num_outputs: int,
        cell_px: int,
        hidden: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.enter = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.Linear(width * (1 if num_dates[name] == 1 else 2), hidden) for width in stages)
                for name, stages in widths.items()
            }
        )
        self.scales = nn.ModuleDict({name: nn.ModuleList(map(_Scale, stages)) for name, stages in widths.items()})
        num_stages = len(next(iter(widths.values())))
        self.context = nn.ModuleList(SteadyConv2d(hidden, hidden, 1) for _ in POOLED_CELLS)
        self.settle = _Convolution(hidden * (1 + len(POOLED_CELLS)), hidden)
        self.fuse = nn.Sequential(_Convolution(hidden * num_stages, hidden), _Convolution(hidden, hidden))
        self.leave = PixelDecoder(hidden, num_outputs, cell_px)
        initialise(self, generator)

    @torch.no_grad()
    def standardise(self, maps: Mapping[str, Sequence[Tensor]]) -> None:
        """Give every channel the mean 0 and deviation 1 that it lacks on these maps, as linear probes do.

        Masked modelling leaves most variance in a few directions; without it the head hardly sees the others.
        """
        for name, found in maps.items():
            scales: Any = self.scales[name]
            for scale, stage_BTyxD in zip(scales, found):
                values_ND = F.layer_norm(stage_BTyxD, stage_BTyxD.shape[-1:]).flatten(0, -2)
                scale.mean.copy_(values_ND.mean(0))
                scale.std.copy_(values_ND.std(0).clamp_min(MIN_STD))

    def forward(self, maps: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Return (B, K, Y, X) in the maps' dtype from sensor -> for each stage (B, T, y, x, D)."""
        stages_BHyx = [self._entered(maps, stage) for stage in range(len(next(iter(maps.values()))))]
        stages_BHyx[-1] = self._with_context(stages_BHyx[-1])
        for stage in range(len(stages_BHyx) - 2, -1, -1):
            stages_BHyx[stage] = stages_BHyx[stage] + _resized(stages_BHyx[stage + 1], stages_BHyx[stage])
        finest = stages_BHyx[0]
        fused_BHyx = self.fuse(torch.cat([_resized(stage, finest) for stage in stages_BHyx], 1))
        return self.leave(fused_BHyx.permute(0, 2, 3, 1))

    def _entered(self, maps: Mapping[str, Sequence[Tensor]], stage: int) -> Tensor:
        """Return (B, H, y, x): what the sensors' maps of a stage add up to."""
        layers: dict[str, Any] = {name: layers[stage] for name, layers in self.enter.items()}  # type: ignore[index]
        scales: dict[str, Any] = {name: scales[stage] for name, scales in self.scales.items()}  # type: ignore[index]
        entered = [layers[name](compared(scales[name](found[stage]))) for name, found in maps.items()]
        return torch.stack(entered).sum(0).permute(0, 3, 1, 2)

    def _with_context(self, last_BHyx: Tensor) -> Tensor:
        pooled = [F.adaptive_avg_pool2d(last_BHyx, cells) for cells in POOLED_CELLS]
        around = [_resized(F.gelu(layer(part)), last_BHyx) for layer, part in zip(self.context, pooled)]
        return self.settle(torch.cat([last_BHyx, *around], 1))


class _Scale(nn.Module):
    """A LayerNorm over the channels of each cell, then a mean and deviation of each channel that are given, not learned."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, map_BTyxD: Tensor) -> Tensor:
        return (F.layer_norm(map_BTyxD, map_BTyxD.shape[-1:]) - self.mean.to(map_BTyxD)) / self.std.to(map_BTyxD)


class PixelHead(nn.Module):
    """A dense head beside a look at the pixels in blocks of BLOCK x BLOCK, judged at DEPTH scales: maps say what is there, pixels
    where it ends.

    `shapes`: (T, C) of each sensor's pixels; `side_px`: of the answer, whole blocks; `head` gives DETAIL channels. A sensor that is
    not given is at 0, the mean.
    """

    DETAIL, BLOCK, DEPTH = 32, 2, 3

    def __init__(
        self,
        head: DenseHead,
        shapes: Mapping[str, Sequence[int]],
        side_px: int,
        num_outputs: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if side_px % self.BLOCK:
            raise InputError(f"a map has {side_px} pixels a side, expected blocks of {self.BLOCK}; use the protocol decoder")
        self.head, self.side_px = head, side_px
        self.widths = {name: bands * (1 if dates == 1 else 2) for name, (dates, bands) in shapes.items()}
        self.look = nn.Sequential(
            _Convolution(sum(self.widths.values()) * self.BLOCK**2, self.DETAIL), _Convolution(self.DETAIL, self.DETAIL)
        )
        self.judge = _Hourglass(2 * self.DETAIL, 2 * self.DETAIL, self.DEPTH)
        self.leave = PixelDecoder(2 * self.DETAIL, num_outputs, self.BLOCK)
        for part in (self.look, self.judge, self.leave):
            initialise(part, generator)

    def forward(self, maps: Mapping[str, Sequence[Tensor]], pixels: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K, Y, X) from maps as `DenseHead` takes them and normalised pixels, sensor -> (B, T, C, y, x)."""
        first = next(iter(pixels.values()))
        like = first.new_zeros(len(first), 0, self.side_px, self.side_px)
        seen = [self._seen(pixels, name, like) for name in self.widths]
        looked = self.look(F.pixel_unshuffle(torch.cat(seen, 1), self.BLOCK))
        judged = self.judge(torch.cat([_resized(self.head(maps), looked), looked], 1))
        return self.leave(judged.permute(0, 2, 3, 1))

    def _seen(self, pixels: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
        """Return (B, C', Y, X) of one date's bands; of several dates the last and its difference from the first."""
        if name not in pixels:
            return like.new_zeros(len(like), self.widths[name], *like.shape[-2:])
        last = pixels[name][:, -1]
        found = last if pixels[name].shape[1] == 1 else torch.cat([last, last - pixels[name][:, 0]], 1)
        return _resized(found, like)


class _Hourglass(nn.Module):
    """Convolutions at `depth` scales, each half as fine, and back (U-Net, Ronneberger et al. 2015, arXiv 1505.04597)."""

    def __init__(self, width: int, out: int, depth: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(_Convolution(out if scale else width, out), _Convolution(out, out)) for scale in range(depth)
        )
        self.up = nn.ModuleList(_Convolution(2 * out, out) for _ in range(depth - 1))

    def forward(self, x_BHyx: Tensor) -> Tensor:
        scales: list[Tensor] = []
        for layer in self.down:
            x_BHyx = layer(F.avg_pool2d(x_BHyx, 2, ceil_mode=True) if scales else x_BHyx)
            scales.append(x_BHyx)
        for layer, finer in zip(self.up, scales[-2::-1]):
            x_BHyx = layer(torch.cat([_resized(x_BHyx, finer), finer], 1))
        return x_BHyx


class _Convolution(nn.Module):
    """A 3 x 3 convolution, a norm over each sample's channels and cells, GELU."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layer = SteadyConv2d(width, out, 3, padding=1)
        self.norm = nn.GroupNorm(1, out)

    def forward(self, x_BHyx: Tensor) -> Tensor:
        return F.gelu(self.norm(self.layer(x_BHyx)))


def compared(map_BTyxD: Tensor) -> Tensor:
    """Return (B, y, x, D) of one date; of several (B, y, x, 2 D), the last and its difference from the first."""
    last = map_BTyxD[:, -1]
    return last if map_BTyxD.shape[1] == 1 else torch.cat([last, last - map_BTyxD[:, 0]], -1)


def _resized(map_BHyx: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    return map_BHyx if map_BHyx.shape[-2:] == size else F.interpolate(map_BHyx, size, mode="bilinear", align_corners=False)
