"""SatMAE: masked autoencoding over dates or groups of bands (Cong et al. 2022, arXiv 2207.08051).

Temporal: tokens of several dates of a place, told year, month and hour. Group: several tokens of a place, one for each group
of similar bands, told its number. Both encodings are put beside the place inside the token's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.encoder import EncoderConfig
from models.masking import consistent_groups
from models.objectives.autoencoder import AutoencoderConfig
from models.objectives.mae import Mae
from models.position_embedding import PositionConfig
from models.sensor import SensorSpec
from models.stems.band_groups import SENTINEL2_GROUPS, BandGroupStemConfig
from models.stems.sensor import SensorStemConfig
from models.vit import VitConfig

Masking = Literal["independent", "consistent"]
TIME_WIDTH, DECODER_TIME_WIDTH = 384, 192
GROUP_WIDTH, DECODER_GROUP_WIDTH = 256, 128
"""Published channels for time and group, of a width of 768 or more and of the decoder's 512."""


def temporal_encoder(
    backbone: VitConfig, token_size_m: float, sensors: tuple[SensorSpec, ...], time_width: int = TIME_WIDTH
) -> EncoderConfig:
    """Return the encoder of several dates."""
    return EncoderConfig(
        backbone,
        token_size_m,
        sensors,
        hidden="absent",
        stem=SensorStemConfig(has_norm=False),
        positions=PositionConfig(time_width=time_width),
        frames="together",
    )


def group_encoder(
    backbone: VitConfig,
    token_size_m: float,
    sensors: tuple[SensorSpec, ...],
    group_width: int = GROUP_WIDTH,
    groups: Sequence[tuple[str, ...]] = SENTINEL2_GROUPS,
) -> EncoderConfig:
    """Return the encoder of groups of bands."""
    stem, positions = BandGroupStemConfig(band_groups=tuple(groups)), PositionConfig(group_width=group_width)
    return EncoderConfig(backbone, token_size_m, sensors, hidden="absent", stem=stem, positions=positions)


@dataclass(frozen=True)
class SatmaeConfig(AutoencoderConfig):
    """masking: independent over all tokens of all groups or dates (published best), or the same places in each."""

    masking: Masking = "independent"


class Satmae(Mae):
    """One sensor a batch; the error is the mean over hidden tokens of all groups and dates.

    Targets are scaled within each group of bands, where the public code scales all bands of a place together.
    """

    def hide(self, seen: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        if self.config.masking == "independent":
            return super().hide(seen, generator)
        (is_seen,) = seen
        batch, times, groups, rows, columns = is_seen.shape
        valid = is_seen.reshape(batch, times * groups, rows * columns)
        hidden = consistent_groups(batch, times * groups, rows * columns, self.config.mask_ratio, generator, valid)
        return [hidden.view_as(is_seen)]
