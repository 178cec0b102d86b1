"""Weights generated from a band's wavelength, as published (DOFA, Xiong et al. 2024, arXiv 2403.15356).

Only the wavelength describes a band: bands of one wavelength, such as a radar's two polarisations, get the same kernel, and a
token depends on their sum alone. Bands without a wavelength are given 3.75 um, as the published training files give
Sentinel-1. Legend as in `generated.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.positions import sincos_1d
from models.sensor import SensorSpec
from models.stems.generated import GeneratedHead, GeneratedStem, Kernels
from models.stems.stem import StemConfig

NUM_WEIGHT_TOKENS, NUM_HEADS, HIDDEN = 128, 4, 2048
SCALE = 0.01
"""Published factor of everything that is generated."""


@dataclass(frozen=True)
class DofaStemConfig(StemConfig):
    """Published: codes of 128, kernels of 16 px applied with a padding of 1 px, no norm, 3.75 um where a band has no wavelength."""

    kind: str = "dofa"
    code_width: int = 128
    kernel_px: int = 16
    padding_px: int = 1
    unknown_um: float = 3.75

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "DofaStem":
        return DofaStem(self, token_size_m, width)

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "DofaHead":
        return DofaHead(self, token_size_m, width)

    def wavelengths_nm(self, spec: SensorSpec) -> Tensor:
        """Return (C,) float64: micrometres times 1000, as published."""
        return torch.tensor([self.unknown_um * 1000 if nm is None else nm for nm in spec.wavelength_nm], dtype=torch.float64)


class WavelengthCodes(nn.Module):
    """Sines and cosines of a wavelength, and a residual layer of two maps, each followed by ReLU."""

    def __init__(self, config: DofaStemConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = (nn.Linear(config.code_width, config.code_width) for _ in range(2))

    def draw(self, generator: torch.Generator | None) -> None:
        _published_values(self, generator)

    def forward(self, spec: SensorSpec) -> Tensor:
        """Return (C, K) in the parameters' dtype."""
        weight = self.first.weight
        code_CK = sincos_1d(self.config.code_width, self.config.wavelengths_nm(spec)).to(weight)
        return code_CK + F.relu(self.second(F.relu(self.first(code_CK))))


class WeightGenerator(nn.Module):
    """One post-norm transformer layer over learned weight tokens, the bands' codes and a bias token; linear maps after it."""

    def __init__(self, code_width: int, num_weights: int, num_biases: int) -> None:
        super().__init__()
        self.weight_tokens = nn.Parameter(torch.empty(NUM_WEIGHT_TOKENS, code_width))
        self.bias_token = nn.Parameter(torch.empty(1, code_width))
        self.qkv = nn.Linear(code_width, 3 * code_width)
        self.project = nn.Linear(code_width, code_width)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(code_width), nn.LayerNorm(code_width)
        self.expand, self.contract = nn.Linear(code_width, HIDDEN), nn.Linear(HIDDEN, code_width)
        self.to_weights = nn.Linear(code_width, num_weights)
        self.to_bias = nn.Linear(code_width, num_biases) if num_biases else None

    def draw(self, generator: torch.Generator | None) -> None:
        _published_values(self, generator)

    def forward(self, code_CK: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (C, num_weights) and (num_biases,), float32."""
        x = torch.cat([self.weight_tokens, code_CK, self.bias_token])
        q, k, v = self.qkv(x).unflatten(-1, (3, NUM_HEADS, -1)).permute(1, 2, 0, 3).unbind(0)
        mixed = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = self.norm_attention(x + self.project(mixed.transpose(0, 1).flatten(1)))
        x = self.norm_mlp(x + self.contract(F.gelu(self.expand(x))))
        weights = self.to_weights(x[NUM_WEIGHT_TOKENS:-1] + code_CK).float() * SCALE
        return weights, None if self.to_bias is None else self.to_bias(x[-1]).float() * SCALE


class DofaStem(GeneratedStem):
    """The published dynamic patch embedding."""

    def __init__(self, config: DofaStemConfig, token_size_m: float, width: int) -> None:
        super().__init__(token_size_m, width, has_norm=False, padding_px=config.padding_px)
        self.side = config.kernel_px
        self.codes = WavelengthCodes(config)
        self.generator = WeightGenerator(config.code_width, self.side**2 * width, width)

    def kernels(self, spec: SensorSpec) -> Kernels:
        weights, bias = self.generator(self.codes(spec))
        assert bias is not None
        return Kernels(weights.view(spec.num_bands, self.side, self.side, -1), bias)


class DofaHead(GeneratedHead):
    """The published dynamic decoder, without bias; its wavelength codes are its own instead of the stem's."""

    def __init__(self, config: DofaStemConfig, token_size_m: float, width: int) -> None:
        super().__init__(token_size_m)
        self.side, self.width = config.kernel_px, width
        self.codes = WavelengthCodes(config)
        self.generator = WeightGenerator(config.code_width, self.side**2 * width, 0)

    def kernels(self, spec: SensorSpec) -> Kernels:
        weights, _ = self.generator(self.codes(spec))
        return Kernels(weights.view(spec.num_bands, self.side, self.side, -1), weights.new_zeros(spec.num_bands))

    def token(self, spec: SensorSpec) -> Tensor:
        """Return the bands' mean code resampled to the decoder's width: the published head tells of one sensor at a time."""
        code_K = self.codes(spec).mean(0)
        return F.interpolate(code_K[None, None], self.width, mode="linear")[0, 0]


@torch.no_grad()
def _published_values(module: nn.Module, generator: torch.Generator | None) -> None:
    """Fill every linear layer uniformly (Glorot & Bengio 2010) and its bias with 0.01, as the public code does."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            part.bias.fill_(0.01)
