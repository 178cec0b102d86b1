"""From an encoder's maps and the pixels it saw to an image: the decoder of cloud removal and pan-sharpening.

This file decides the decoder's shape. What it starts from, and what it is trained towards, is decided by who trains it.
Legend: B batch, C channel, Y X pixels of the image, y x cells of a map, D width, H width of the decoder.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import Encoder
from models.initialise import initialise
from models.layers import SteadyConv2d
from models.sensor import SensorSpec

BALANCE_WEIGHT = 0.01
"""Of the experts' balance loss."""


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
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

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
        return F.adaptive_avg_pool2d(image, (size[0], size[1]))
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False)


class Restorer(nn.Module):
    """An encoder and a decoder: tiles and a first guess in physical units to an image in network units of `target`.

    Pixels go through the encoder's own checks and normalisation. A frozen encoder has no gradients and stays in evaluation mode.
    """

    def __init__(self, encoder: Encoder, head: RestorationDecoder, target: SensorSpec, is_frozen: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.target, self.is_frozen = encoder, head, target, is_frozen
        encoder.requires_grad_(not is_frozen)

    def train(self, mode: bool = True) -> "Restorer":
        super().train(mode)
        self.encoder.train(mode and not self.is_frozen)
        return self

    def forward(
        self, batch: Batch, guess: Tensor, is_known: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (B, C, Y, X) and the experts' balance loss; guess (B, C, Y, X), known where is_known (B, Y, X)."""
        maps, pixels, is_valid, balance = {}, {}, {}, torch.zeros(())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            for name, tiles in batch.tiles.items():
                features, _ = self.encoder.examined(tiles, name, batch.lonlat, generator)
                maps[name], balance = features.maps, balance + features.balance
                pixels[name], _ = self.encoder.normalise(tiles, self.encoder.spec(name))
                is_valid[name] = tiles.is_observed.flatten(0, 1)
        start = self.target.normalise(guess.float(), is_known, self._level(guess))
        return self.head(maps, pixels, is_valid, start), BALANCE_WEIGHT * balance

    def loss(self, outputs: Tensor, truth: Tensor, is_valid: Tensor) -> Tensor:
        """Return the mean absolute difference from the truth (B, C, Y, X) over its valid pixels (B, Y, X), in network units."""
        apart = (outputs - self.target.normalise(truth.float(), is_valid, self._level(truth))).abs()
        count = (is_valid.sum() * outputs.shape[1]).clamp_min(1)
        return apart.masked_fill(~is_valid[:, None], 0).sum() / count

    def physical(self, outputs: Tensor) -> Tensor:
        """Return outputs in the target sensor's unit."""
        return self.target.denormalise(outputs, self._level(outputs))

    def _level(self, image: Tensor) -> Tensor:
        return image.new_tensor(self.target.mean).view(1, -1, 1, 1)
