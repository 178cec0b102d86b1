"""From an encoder's maps and the pixels it saw to an image: the decoder of cloud removal and pan-sharpening.

This file decides the decoder's shape. What it starts from, and what it is trained towards, is decided by who trains it.
Legend: B batch, C channel, Y X pixels of the image, y x cells of a map, D width, H width of the decoder.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.initialise import initialise
from models.layers import SteadyConv2d
from models.sensor import SensorSpec


class RestorationDecoder(nn.Module):
    """Adds to a first guess what the encoder's maps (where and what) and the inputs' own pixels (detail) say is missing.

    It begins by adding nothing. `widths` are those of the encoder's stages.
    """

    def __init__(
        self,
        inputs: Sequence[SensorSpec],
        target: SensorSpec,
        widths: Sequence[int],
        hidden: int = 48,
        depth: int = 4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.context = nn.ModuleDict({spec.name: nn.ModuleList(nn.Linear(width, hidden) for width in widths) for spec in inputs})
        self.detail = nn.ModuleDict({spec.name: SteadyConv2d(spec.num_bands + 1, hidden, 3, padding=1) for spec in inputs})
        self.first = SteadyConv2d(target.num_bands, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.last = nn.Conv2d(hidden, target.num_bands, 3, padding=1)
        initialise(self, generator)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, maps: Mapping[str, Sequence[Tensor]], pixels: Mapping[str, Tensor], is_valid: Mapping[str, Tensor], guess: Tensor
    ) -> Tensor:
        """Return (B, C, Y, X) in network units, as `guess` is.

        maps      sensor -> for each stage (B, y, x, D)
        pixels    sensor -> (B, C', Y', X') in network units, with is_valid (B, Y', X'), of the same ground in pixels of any size
        """
        size = guess.shape[-2:]
        total = self.first(guess)
        for name, stages in maps.items():
            for project, stage in zip(self.context[name], stages):  # type: ignore[call-overload]
                normed = F.layer_norm(stage.float(), stage.shape[-1:])
                total = total + _resized(project(normed).permute(0, 3, 1, 2), size)
            seen = torch.cat([pixels[name], is_valid[name][:, None].to(pixels[name])], 1)
            total = total + self.detail[name](_resized(seen, size))
        for block in self.blocks:
            total = block(total)
        return guess + self.last(F.gelu(total))


class _Block(nn.Module):
    """Two convolutions, added to what they look at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.find = SteadyConv2d(width, width, 3, padding=1)
        self.keep = SteadyConv2d(width, width, 3, padding=1)

    def forward(self, x_BHYX: Tensor) -> Tensor:
        return x_BHYX + self.keep(F.gelu(self.find(F.gelu(x_BHYX))))


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """Return an image on another grid of the same ground, pixel-is-area."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    if image.shape[-1] > size[-1]:
        return F.adaptive_avg_pool2d(image, tuple(size))
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False)
