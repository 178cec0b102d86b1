"""From the encoder's last map back to one sensor's own pixels.

This file decides the head of masked image modelling. What is compared with what is decided by the objective.
Legend: B batch, C channel, Y X cells of the last map, y x pixels, D width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PixelDecoder(nn.Module):
    """One linear map per cell, then pixel shuffle: SimMIM (Xie et al. 2022, arXiv 2111.09886), GFM (arXiv 2302.04476).

    stride_px is the side of one cell in pixels of this sensor, so every sensor's output covers the same ground.
    """

    def __init__(self, width: int, num_bands: int, stride_px: int) -> None:
        super().__init__()
        self.stride_px = stride_px
        self.project = nn.Linear(width, num_bands * stride_px**2)

    def forward(self, map_BYXD: Tensor) -> Tensor:
        """Return normalised pixels (B, C, Y * stride_px, X * stride_px) in the map's dtype."""
        return F.pixel_shuffle(self.project(map_BYXD).permute(0, 3, 1, 2), self.stride_px)
