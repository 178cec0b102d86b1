"""RingMo: hide single pixels inside blocks, at the input (Sun et al. 2022, IEEE TGRS, 10.1109/TGRS.2022.3194732).

SimMIM with another way of hiding (PIMask): in a share of all blocks a share of the pixels is zeroed in network units, the
same ones in every band, before the stem and in place of a mask token, so that small objects are seldom hidden whole. Its
optional second decoder, to local binary patterns, was off in what was published and is left out.
Legend: B samples (dates counted as samples), Y X pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Batch, Tiles
from models.encoder import Features
from models.errors import InputError
from models.masking import partial_pixels
from models.objectives.simmim import Simmim, SimmimConfig
from models.sensor import SensorSpec


@dataclass(frozen=True)
class RingmoConfig(SimmimConfig):
    """In mask_ratio of the blocks pixel_ratio of the pixels are hidden (both counted up to whole ones)."""

    pixel_ratio: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.pixel_ratio <= 1:
            raise InputError(f"ringmo has pixel_ratio {self.pixel_ratio}, expected above 0 and at most 1")


class Ringmo(Simmim):
    """One sensor a batch, taking turns, predicts its own hidden pixels."""

    def hide(self, tiles: Tiles, spec: SensorSpec, generator: torch.Generator) -> Tensor:
        """Return (B, Y, X) bool over pixels."""
        config, (rows, columns) = self.config, tiles.pixels.shape[-2:]
        block = spec.patch_px(config.mask_block_m)
        count = tiles.is_present.numel()
        return partial_pixels(count, (rows, columns), block, config.mask_ratio, config.pixel_ratio, generator)

    def see(self, pixels: Tensor, hidden: Tensor | None, batch: Batch, spec: SensorSpec, generator: torch.Generator) -> Features:
        """Return what the encoder makes of pixels of which hidden ones are 0; no token is hidden."""
        pixels = pixels if hidden is None else pixels.masked_fill(hidden[:, None], 0)
        return super().see(pixels, None, batch, spec, generator)
