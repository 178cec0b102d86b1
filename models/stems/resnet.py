"""ResNet's stem, one for each sensor: a wide strided convolution, norm, ReLU and pooling (He et al. 2016, arXiv 1512.03385).

Legend as in `stem.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from models.norms import GlobalBatchNorm
from models.resnet import Convolution
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig, of_sensor, refuse_unseen
from models.stems.stem import Head, Stem, StemConfig

KERNEL = 7


@dataclass(frozen=True)
class ResnetStemConfig(StemConfig):
    """As published for tokens of 4 px: 7 x 7 with stride 2, then the maximum of 3 x 3 with stride 2.

    Other tokens: an even number of pixels is halved by the pooling, the convolution's stride is the rest and its kernel the
    next odd number if it is above 7; an odd number is the convolution's alone.
    """

    kind: str = "resnet"

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "ResnetStem":
        return ResnetStem(sensors, token_size_m, width)

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> Head:
        return SensorStemConfig().build_head(sensors, token_size_m, width)


class ResnetProjection(nn.Module):
    """Pixels of one sensor to tokens, which overlap on the ground."""

    def __init__(self, num_bands: int, patch_px: int, width: int) -> None:
        super().__init__()
        self.is_pooled = patch_px % 2 == 0
        stride = patch_px // 2 if self.is_pooled else patch_px
        self.convolution = Convolution(num_bands, width, max(KERNEL, stride + 1 - stride % 2), stride)
        self.norm = GlobalBatchNorm(width)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """Return tokens (B, y, x, D)."""
        x_BDYX = F.relu(self.norm(self.convolution(pixels_BCYX.to(self.convolution.weight.dtype))))
        x_BDYX = F.max_pool2d(x_BDYX, 3, 2, padding=1) if self.is_pooled else x_BDYX
        return x_BDYX.permute(0, 2, 3, 1)


class ResnetStem(Stem):
    """A projection for each sensor."""

    def __init__(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {s.name: nn.ModuleList([ResnetProjection(s.num_bands, s.patch_px(token_size_m), width)]) for s in sensors}
        )

    def forward(self, pixels_BCYX: Tensor, spec: SensorSpec) -> Tensor:
        return of_sensor(self.projections, spec)[0](pixels_BCYX)[:, None]

    def check_unseen(self, spec: SensorSpec) -> None:
        refuse_unseen(self.projections, spec)
