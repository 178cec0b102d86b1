"""DOFA: masked autoencoding with weights generated from wavelengths (Xiong et al. 2024, arXiv 2403.15356)."""

from dataclasses import dataclass

from models.encoder import EncoderConfig
from models.objectives.autoencoder import AutoencoderConfig
from models.objectives.mae import Mae
from models.sensor import SensorSpec
from models.stems.dofa import DofaStemConfig
from models.vit import VitConfig


def dofa_encoder(
    backbone: VitConfig, token_size_m: float, sensors: tuple[SensorSpec, ...], stem: DofaStemConfig | None = None
) -> EncoderConfig:
    """Return the encoder whose stem is generated from wavelengths."""
    return EncoderConfig(backbone, token_size_m, sensors, hidden="absent", stem=stem or DofaStemConfig())


@dataclass(frozen=True)
class DofaConfig(AutoencoderConfig):
    """Published: 75 % hidden, targets scaled by patch."""


class Dofa(Mae):
    """One sensor a batch through one generated stem and one generated head.

    Left out: the published second term, a cosine to a frozen ImageNet ViT's view of three bands, whose weights cannot be had
    without torchvision; `gfm` has such a term with a teacher of one's own.
    """
