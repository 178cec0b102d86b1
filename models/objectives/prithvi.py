"""Prithvi: masked autoencoding of several dates with three-dimensional positions (Jakubik et al. 2023, arXiv 2310.18660).

Version 2 tells encoder and decoder when and where (Szwarcman et al. 2024, arXiv 2412.02732): year and day of the year,
latitude and longitude, each added with a learned weight and withheld from some samples. Targets are not scaled by patch.
"""

from dataclasses import dataclass, replace

from models.encoder import EncoderConfig
from models.objectives.autoencoder import AutoencoderConfig
from models.objectives.mae import Mae
from models.position_embedding import PositionConfig
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig
from models.vit import VitConfig

METADATA_DROP = 0.1
V1 = PositionConfig(plane="tubelet")
V2 = replace(V1, has_time=True, has_location=True, metadata_drop=METADATA_DROP)


def prithvi_encoder(
    backbone: VitConfig, token_size_m: float, sensors: tuple[SensorSpec, ...], positions: PositionConfig = V1
) -> EncoderConfig:
    """Return the encoder of several dates; a token is one patch of one date."""
    stem = SensorStemConfig(has_norm=False)
    return EncoderConfig(
        backbone, token_size_m, sensors, hidden="absent", stem=stem, positions=positions, frames="together", pool="class"
    )


@dataclass(frozen=True)
class PrithviConfig(AutoencoderConfig):
    """Decoder's positions V1 or V2 as the encoder's."""

    normalise_patches: bool = False


class Prithvi(Mae):
    """Of the tokens of all dates a random share is hidden."""
