"""Tokens that are cubes: a few neighbouring bands by a patch (S2MAE, Li et al. CVPR 2024; SpectralGPT, arXiv 2311.07113).

One projection serves all cubes of a sensor; which bands a cube holds is told by its position. Legend as in `stem.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.sensor import SensorSpec
from models.stems.sensor import PatchProjection, of_sensor, refuse_unseen
from models.stems.stem import Head, Stem, StemConfig


@dataclass(frozen=True)
class CubeStemConfig(StemConfig):
    """bands_per_cube bands in the sensor's order to a cube; the last cube of a sensor may have fewer."""

    kind: str = "cubes"
    bands_per_cube: int = 3

    def __post_init__(self) -> None:
        if self.bands_per_cube < 1:
            raise InputError(f"cubes have {self.bands_per_cube} bands, expected at least 1")

    def groups(self, spec: SensorSpec) -> tuple[tuple[int, ...], ...]:
        starts = range(0, spec.num_bands, self.bands_per_cube)
        return tuple(tuple(range(start, min(start + self.bands_per_cube, spec.num_bands))) for start in starts)

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "CubeStem":
        return CubeStem(self, sensors, token_size_m, width)

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "CubeHead":
        return CubeHead(self, sensors, token_size_m, width)


class CubeStem(Stem):
    """A three-dimensional strided convolution per sensor."""

    def __init__(self, config: CubeStemConfig, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> None:
        super().__init__()
        self.config = config
        depth = config.bands_per_cube
        self.projections = nn.ModuleDict(
            {s.name: nn.ModuleList([PatchProjection(depth, s.patch_px(token_size_m), width, False)]) for s in sensors}
        )

    def forward(self, pixels_BCYX: Tensor, spec: SensorSpec) -> Tensor:
        depth, num_cubes = self.config.bands_per_cube, len(self.config.groups(spec))
        whole = F.pad(pixels_BCYX, (0, 0, 0, 0, 0, num_cubes * depth - spec.num_bands))
        tokens = of_sensor(self.projections, spec)[0](whole.unflatten(1, (num_cubes, depth)).flatten(0, 1))
        return tokens.unflatten(0, (pixels_BCYX.shape[0], num_cubes))

    def check_unseen(self, spec: SensorSpec) -> None:
        refuse_unseen(self.projections, spec)


class CubeHead(Head):
    """One linear map per sensor for all its cubes."""

    def __init__(self, config: CubeStemConfig, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> None:
        super().__init__()
        self.config = config
        sizes = {spec.name: spec.patch_px(token_size_m) ** 2 for spec in sensors}
        self.projections = nn.ModuleDict(
            {name: nn.ModuleList([nn.Linear(width, size * config.bands_per_cube)]) for name, size in sizes.items()}
        )

    def forward(self, tokens_BGND: Tensor, spec: SensorSpec) -> list[Tensor]:
        patches = of_sensor(self.projections, spec)[0](tokens_BGND)
        cubes = patches.unflatten(-1, (-1, self.config.bands_per_cube))
        return [torch.flatten(cubes[:, i, ..., : len(bands)], 2) for i, bands in enumerate(self.config.groups(spec))]
