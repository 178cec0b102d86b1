"""Small encoders and batches shared by the tests of this room."""

from collections.abc import Callable

import pytest
import torch

from models.batch import Batch, Tiles
from models.encoder import EncoderConfig
from models.moe import MoEConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig

torch.set_num_threads(1)  # tensors here are so small that more threads only wait for one another

OPTICAL = SensorSpec(
    "optical", "passive", "surface_reflectance", "1", 10.0, ("red", "nir"), (665.0, 842.0), (0.1, 0.3), (0.05, 0.1)
)
RADAR = SensorSpec("radar", "active", "sigma0", "dB", 10.0, ("VV",), (None,), (-12.0,), (4.0,))
DSM = SensorSpec("dsm", "active", "height", "m", 5.0, ("height",), (None,), (400.0,), (8.0,))
AERIAL = SensorSpec("aerial", "passive", "digital_number", "1", 5.0, ("g",), (560.0,), (0.4,), (0.2,))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def specs() -> dict[str, SensorSpec]:
    return {spec.name: spec for spec in (OPTICAL, RADAR, DSM, AERIAL)}


@pytest.fixture
def make_config() -> Callable[..., EncoderConfig]:
    """An encoder of two stages, window 2, tokens of 20 m; experts only where asked for."""

    def make(*sensors: SensorSpec, num_experts: int = 0, capacity_factor: float = 1.25, **swin: object) -> EncoderConfig:
        moe = MoEConfig(num_experts, 1, capacity_factor) if num_experts else None
        shape = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window": 2, "moe": moe, "moe_stages": (1,)}
        return EncoderConfig(SwinConfig(**{**shape, **swin}), 20.0, sensors or (OPTICAL, RADAR, DSM, AERIAL))

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Noise about each sensor's statistics over sites of `size_m`, everything valid and present."""

    def make(*sensors: SensorSpec, num: int = 4, times: int = 1, size_m: float = 160.0, index: int = 0, seed: int = 3) -> Batch:
        draw = torch.Generator().manual_seed(seed)
        tiles = {}
        for spec in sensors:
            side = round(size_m / spec.gsd_m)
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
            pixels = torch.randn(num, times, spec.num_bands, side, side, generator=draw) * std + mean
            tiles[spec.name] = Tiles(
                pixels,
                torch.ones(num, times, side, side, dtype=torch.bool),
                torch.ones(num, times, dtype=torch.bool),
                torch.zeros(num, times, dtype=torch.float64),
                spec.bands,
                spec.unit,
                spec.gsd_m,
            )
        return Batch(tiles, torch.zeros(num, 2, dtype=torch.float64), index)

    return make
