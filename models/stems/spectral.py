"""Weights generated from what a band physically is: sensing, wavelength, bandwidth, polarisation, quantity, pixel size.

Our hypernetwork. It tells apart what a wavelength alone cannot: VV from VH, radar from optical, height from reflectance. Each
band's kernel depends on that band only, so bands may come in any order and number, and a sensor that was never seen works if
its bands can be described. Legend as in `generated.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import hint
from models.errors import InputError
from models.positions import sincos_1d
from models.sensor import SensorSpec
from models.stems.generated import GeneratedHead, GeneratedStem, Kernels
from models.stems.stem import StemConfig

Fact = Literal["wavelength", "bandwidth", "gsd", "sensing", "quantity", "polarisation"]
FACTS: tuple[Fact, ...] = get_args(Fact)
QUANTITIES = ("surface_reflectance", "toa_reflectance", "radiance", "temperature", "sigma0", "gamma0", "height", "digital_number")
SENSING = ("passive", "active")
LIGHT_NM_GHZ = 299_792_458.0
"""Wavelength in nm times frequency in GHz."""
NUM_FACTS = 3 * 33 + len(SENSING) + len(QUANTITIES) + 4
LOG_STEP = 0.01
"""One position of the sines and cosines is this difference of decimal logarithms: 2.3 %."""


@dataclass(frozen=True)
class SpectralStemConfig(StemConfig):
    """facts: what describes a band; fewer make the controls of an ablation. Kernels are made on kernel_px^2 places of a token."""

    kind: str = "spectral"
    code_width: int = 128
    kernel_px: int = 8
    facts: tuple[Fact, ...] = FACTS

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "SpectralStem":
        for spec in sensors:
            describe(spec, self.facts)
        return SpectralStem(self, token_size_m, width)

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "SpectralHead":
        return SpectralHead(self, token_size_m, width)


def describe(spec: SensorSpec, facts: Sequence[Fact] = FACTS) -> Tensor:
    """Return (C, NUM_FACTS) float32, the description of each band; what is not among `facts` is left at 0.

    Logarithms of wavelength (of a radar that of its frequency), bandwidth and pixel size as 32 sines and cosines each, then
    one of two ways of sensing, one of the quantities, and polarisation sent and received, H or V each. What a band has not is
    0 and, for numbers, said by a flag. Raise InputError for a quantity that is not known.
    """
    if spec.quantity not in QUANTITIES:
        raise InputError(
            f"sensor '{spec.name}' measures '{spec.quantity}', which a spectral stem was not made for (knows "
            f"{', '.join(QUANTITIES)}){hint(spec.quantity, QUANTITIES)}"
        )
    rows = []
    for i in range(spec.num_bands):
        frequency = spec.frequency_ghz[i]
        wavelength = spec.wavelength_nm[i] if frequency is None else LIGHT_NM_GHZ / frequency
        polarisation = spec.polarisation[i] or ""
        parts: dict[Fact, Tensor] = {
            "wavelength": _logarithm(wavelength),
            "bandwidth": _logarithm(spec.bandwidth_nm[i]),
            "gsd": _logarithm(spec.gsd_m),
            "sensing": _one_of(spec.sensing, SENSING),
            "quantity": _one_of(spec.quantity, QUANTITIES),
            "polarisation": torch.cat([_one_of(letter, "HV") for letter in (polarisation[:1], polarisation[1:])]),
        }
        rows.append(torch.cat([part if name in facts else torch.zeros_like(part) for name, part in parts.items()]))
    return torch.stack(rows)


def _logarithm(value: float | None) -> Tensor:
    """Return (33,): 32 sines and cosines of the logarithm and a 1, or zeros where there is no value."""
    if value is None:
        return torch.zeros(33)
    return torch.cat([sincos_1d(32, torch.tensor(math.log10(value) / LOG_STEP)), torch.ones(1)])


def _one_of(value: str, known: Sequence[str]) -> Tensor:
    return torch.tensor([float(value == name) for name in known])


class BandCodes(nn.Module):
    """A two-layer network from a band's description to its code, of unit variance."""

    def __init__(self, config: SpectralStemConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(NUM_FACTS, 2 * config.code_width)
        self.second = nn.Linear(2 * config.code_width, config.code_width)
        self.norm = nn.LayerNorm(config.code_width)

    def forward(self, spec: SensorSpec) -> Tensor:
        """Return (C, K) in the parameters' dtype."""
        facts = describe(spec, self.config.facts).to(self.first.weight)
        return self.norm(self.second(F.gelu(self.first(facts))))


class SpectralStem(GeneratedStem):
    """Kernels by one linear map of a band's code, the bias by one of the mean code."""

    def __init__(self, config: SpectralStemConfig, token_size_m: float, width: int) -> None:
        super().__init__(token_size_m, width, has_norm=True)
        self.side, self.scale = config.kernel_px, config.code_width**-0.5
        self.codes = BandCodes(config)
        self.to_weights = nn.Linear(config.code_width, self.side**2 * width)
        self.to_bias = nn.Linear(config.code_width, width)

    def kernels(self, spec: SensorSpec) -> Kernels:
        code_CK = self.codes(spec)
        # Kernels have the spread of any other first layer's, whatever the width of a code.
        weights = self.to_weights(code_CK).float() * self.scale
        return Kernels(weights.view(spec.num_bands, self.side, self.side, -1), self.to_bias(code_CK.mean(0)).float())


class SpectralHead(GeneratedHead):
    """As the stem, the other way; `token` tells a decoder which sensor is to be predicted."""

    def __init__(self, config: SpectralStemConfig, token_size_m: float, width: int) -> None:
        super().__init__(token_size_m)
        self.side, self.scale = config.kernel_px, config.code_width**-0.5
        self.codes = BandCodes(config)
        self.to_weights = nn.Linear(config.code_width, self.side**2 * width)
        self.to_bias = nn.Linear(config.code_width, 1)
        self.to_token = nn.Linear(config.code_width, width)

    def kernels(self, spec: SensorSpec) -> Kernels:
        code_CK = self.codes(spec)
        weights = self.to_weights(code_CK).float() * self.scale
        return Kernels(weights.view(spec.num_bands, self.side, self.side, -1), self.to_bias(code_CK).float().flatten())

    def token(self, spec: SensorSpec) -> Tensor:
        return self.to_token(self.codes(spec).mean(0))
