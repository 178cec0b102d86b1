"""S2MAE: masked autoencoding of spectral cubes (Li, Hong, Chanussot, CVPR 2024), and SpectralGPT (arXiv 2311.07113).

A token is a cube of a few neighbouring bands and a patch; 90 % of all cubes are hidden. S2MAE has no public code: sizes and
positions are those of its sibling SpectralGPT, by the same group, which has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.encoder import EncoderConfig
from models.errors import InputError
from models.masking import cubes
from models.objectives.autoencoder import AutoencoderConfig, Encoded, Predicted, mean_by_sample
from models.objectives.mae import Mae
from models.position_embedding import PositionConfig
from models.sensor import SensorSpec
from models.stems.cubes import CubeStemConfig
from models.vit import VitConfig


def cube_encoder(
    backbone: VitConfig, token_size_m: float, sensors: tuple[SensorSpec, ...], bands_per_cube: int = 3, learned_grid: int = 12
) -> EncoderConfig:
    """Return the encoder of cubes, with learned positions for as many cubes as the richest sensor has."""
    stem = CubeStemConfig(bands_per_cube=bands_per_cube)
    positions = cube_positions(stem, sensors, learned_grid)
    return EncoderConfig(backbone, token_size_m, sensors, hidden="absent", stem=stem, positions=positions)


def cube_positions(stem: CubeStemConfig, sensors: tuple[SensorSpec, ...], learned_grid: int = 12) -> PositionConfig:
    """Return learned tables of places and of cubes along the spectrum."""
    num_cubes = max(len(stem.groups(spec)) for spec in sensors)
    return PositionConfig(plane="learned", learned_grid=learned_grid, learned_groups=num_cubes)


@dataclass(frozen=True)
class S2maeConfig(AutoencoderConfig):
    """cube: what is hidden together, in (cubes along the spectrum, rows, columns) of tokens.

    sum_weight: of SpectralGPT's second term, the squared error of the sum over a place's cubes, everywhere; 0 without.
    """

    mask_ratio: float = 0.9
    cube: tuple[int, ...] = (1, 1, 1)
    sum_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.cube) != 3 or min(self.cube) < 1:
            raise InputError(f"s2mae hides cubes of {self.cube} tokens, expected three numbers of at least 1")


class S2mae(Mae):
    """One sensor a batch, its cubes hidden over space and spectrum alike."""

    def hide(self, seen: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        (is_seen,) = seen
        batch, times, groups, rows, columns = is_seen.shape
        a, b, c = self.config.cube
        valid = is_seen.reshape(batch, times * groups, rows, columns)
        hidden = cubes(batch, (times * groups, rows, columns), (a, b, c), self.config.mask_ratio, generator, valid)
        return [hidden.view_as(is_seen)]

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        terms = super().score(made, encoded)
        if self.config.sum_weight:
            terms["spectral_sum"] = summed_error(made[0])
            terms["reconstruction"] = terms["reconstruction"] + self.config.sum_weight * terms["spectral_sum"]
        return terms


def summed_error(made: Predicted) -> Tensor:
    """Return the squared error between sums over all cubes of a place, mean over a patch's pixels and observed places.

    Cubes at the end of a sensor's bands that hold fewer take part with the pixels that they have.
    """
    sums = []
    for patches in (made.patches, made.targets):
        size = max(part.shape[-1] for part in patches)
        sums.append(torch.stack([torch.nn.functional.pad(part, (0, size - part.shape[-1])) for part in patches]).sum(0))
    is_seen = made.given.is_seen.all(2).flatten(1)
    return mean_by_sample((sums[0] - sums[1]).pow(2).mean(-1), is_seen)
