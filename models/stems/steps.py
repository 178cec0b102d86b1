"""A stem of its own for each sensor, from pixels to patches in three steps (RingMo, Sun et al. 2022).

Pixels that are hidden one by one are first seen beside their nearest neighbours. No step looks beyond its patch.
Legend as in `stem.py`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from models.layers import SteadyConv2d
from models.norms import GlobalBatchNorm
from models.stems.sensor import SensorStemConfig


@dataclass(frozen=True)
class StepStemConfig(SensorStemConfig):
    """Three strided convolutions, a batch norm after each, GELU between them; the first two a quarter of the width wide."""

    kind: str = "steps"
    has_norm: bool = False

    def projection(self, num_bands: int, patch_px: int, width: int) -> nn.Module:
        return StepProjection(num_bands, patch_px, width)


class StepProjection(nn.Module):
    """Pixels to tokens whose patches do not overlap.

    Values begin with a variance near 1, at which running statistics begin too: a short run's encoder is not blind.
    """

    def __init__(self, num_bands: int, patch_px: int, width: int) -> None:
        super().__init__()
        first, second, third = factors(patch_px)
        narrow = width // 4
        self.layers = nn.Sequential(
            SteadyConv2d(num_bands, narrow, first, first),
            GlobalBatchNorm(narrow),
            nn.GELU(),
            SteadyConv2d(narrow, narrow, second, second),
            GlobalBatchNorm(narrow),
            nn.GELU(),
            SteadyConv2d(narrow, width, third, third),
            GlobalBatchNorm(width),
        )

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """Return tokens (B, y, x, D)."""
        first: nn.Conv2d = self.layers[0]  # type: ignore[assignment]
        return self.layers(pixels_BCYX.to(first.weight.dtype)).permute(0, 2, 3, 1)


def factors(patch_px: int) -> tuple[int, int, int]:
    """Return three numbers, none larger than the one before it, that make `patch_px`: of all such ones the smallest first."""
    found = [
        (first, second, patch_px // first // second)
        for first in range(1, patch_px + 1)
        for second in range(1, first + 1)
        if patch_px % (first * second) == 0 and patch_px // first // second <= second
    ]
    return found[0]
