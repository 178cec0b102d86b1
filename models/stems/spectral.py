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
from models.initialise import STD
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
WEIGHT_OF_KIND = 4.0
"""What stands for 'is of this kind': as long as the 16 sines and cosines of a number, so that VV is as far from VH as a
wavelength from another."""
STEEPNESS = 3.0
LOG_STEP = 0.01
"""One position of the sines and cosines is this difference of decimal logarithms: 2.3 %."""


@dataclass(frozen=True)
class SpectralStemConfig(StemConfig):
    """facts: what describes a band; fewer make the controls of an ablation. Kernels are made on kernel_px^2 places of a token.

    With a norm after it the radar's probe was better after 150 small steps of `loom` (0.46 against 0.36), without it that of
    Sentinel-2 (0.67 against 0.66).
    """

    kind: str = "spectral"
    code_width: int = 128
    kernel_px: int = 8
    has_norm: bool = True
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
    return torch.tensor([WEIGHT_OF_KIND * (value == name) for name in known])


class BandCodes(nn.Module):
    """A network from a band's description to its code, of unit variance: a layer of sines (Sitzmann et al. 2020), a linear one.

    Sines of STEEPNESS make codes of different bands nearly independent at first, as weights of their own would be; with a
    gentler layer a stem saw little but the sum of all bands.
    """

    def __init__(self, config: SpectralStemConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(NUM_FACTS, 2 * config.code_width)
        self.second = nn.Linear(2 * config.code_width, config.code_width)
        self.norm = nn.LayerNorm(config.code_width)

    def draw(self, generator: torch.Generator | None) -> None:
        for layer, gain in ((self.first, STEEPNESS), (self.second, 1.0)):
            nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5, generator=generator)

    def forward(self, spec: SensorSpec) -> Tensor:
        """Return (C, K) in the parameters' dtype."""
        facts = describe(spec, self.config.facts).to(self.first.weight.device)
        # A phase of many turns in bf16 would be noise.
        phase = F.linear(facts, self.first.weight.float(), self.first.bias.float())
        return self.norm(self.second(phase.sin().to(self.second.weight.dtype)))


class Generator(nn.Module):
    """A linear map of a band's code whose outputs begin and move as parameters of their own would.

    An optimiser that moves every weight by the learning rate moves an output, a sum over K of them, K times as far: all bands
    then move together and what tells them apart is lost (the probe fell from 0.72 to 0.47 in 300 steps). So outputs are
    divided by K, and weights begin larger by the square root of K than the outputs are to be.
    """

    def __init__(self, code_width: int, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(code_width, num_outputs, bias=False)

    def draw(self, generator: torch.Generator | None) -> None:
        nn.init.normal_(self.linear.weight, std=STD * self.linear.in_features**0.5, generator=generator)

    def forward(self, code: Tensor) -> Tensor:
        """Return (..., num_outputs) float32 of codes (..., K)."""
        return self.linear(code).float() / self.linear.in_features


class SpectralStem(GeneratedStem):
    """Kernels generated from a band's code, the bias from the mean code."""

    def __init__(self, config: SpectralStemConfig, token_size_m: float, width: int) -> None:
        super().__init__(token_size_m, width, config.has_norm)
        self.side = config.kernel_px
        self.codes = BandCodes(config)
        self.to_weights = Generator(config.code_width, self.side**2 * width)
        self.to_bias = Generator(config.code_width, width)

    def kernels(self, spec: SensorSpec) -> Kernels:
        code_CK = self.codes(spec)
        weights = self.to_weights(code_CK).view(spec.num_bands, self.side, self.side, -1)
        return Kernels(weights, self.to_bias(code_CK.mean(0)))


class SpectralHead(GeneratedHead):
    """As the stem, the other way; `token` tells a decoder which sensor is to be predicted."""

    def __init__(self, config: SpectralStemConfig, token_size_m: float, width: int) -> None:
        super().__init__(token_size_m)
        self.side = config.kernel_px
        self.codes = BandCodes(config)
        self.to_weights = Generator(config.code_width, self.side**2 * width)
        self.to_bias = Generator(config.code_width, 1)
        self.to_token = Generator(config.code_width, width)

    def kernels(self, spec: SensorSpec) -> Kernels:
        code_CK = self.codes(spec)
        weights = self.to_weights(code_CK).view(spec.num_bands, self.side, self.side, -1)
        return Kernels(weights, self.to_bias(code_CK).flatten())

    def token(self, spec: SensorSpec) -> Tensor:
        return self.to_token(self.codes(spec).mean(0))
