"""msGFM: cross-sensor masked image modelling (Han et al., CVPR 2024, arXiv 2404.01260).

SimMIM in which what is hidden is predicted in the pixels of the same sensor or of another one over the same site. Needs
views in which the sensors of a batch cover the same sites at the same times.
Legend: B samples (dates counted as samples), S sensors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.batch import Batch, Tiles
from models.errors import InputError
from models.objectives.simmim import EPS, Prediction, Simmim, SimmimConfig
from models.sensor import SensorSpec


@dataclass(frozen=True)
class MsgfmConfig(SimmimConfig):
    """A sample that has another sensor reconstructs it with cross_sensor_probability, else itself."""

    cross_sensor_probability: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cross_sensor_probability <= 1:
            raise InputError(f"msgfm has cross_sensor_probability {self.cross_sensor_probability}, expected [0, 1]")


class Msgfm(Simmim):
    """One encoder, one decoder per sensor; every sensor of the batch is predicted, one of them scored in each sample."""

    def score(self, made: Prediction, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean error over samples, each of its own target, and named terms: reconstruction and, per sensor,

        'l1/<source>-><target>', the mean over the samples that had this target, 0 if none had.
        """
        sensors = self.sensors(batch)
        is_target_SB = self._draw_targets(batch, sensors, made.source.name, generator)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=made.hidden.device)
        for spec, is_target_B in zip(sensors, is_target_SB):
            error_B = self.error(made, spec, batch)
            error_B = error_B * is_target_B.to(error_B)
            total = total + error_B.mean()
            terms[f"l1/{made.source.name}->{spec.name}"] = error_B.sum() / (is_target_B.sum() + EPS)
        return total, {"reconstruction": total, **terms}

    def sensors(self, batch: Batch) -> list[SensorSpec]:
        """Return the batch's sensors in the encoder's order; refuse what cannot be paired."""
        sensors = super().sensors(batch)
        found = {}
        for spec in sensors:
            tiles, patch = batch.tiles[spec.name], spec.patch_px(self.config.encoder.token_size_m)
            found[spec.name] = (*tiles.is_present.shape, *(size // patch for size in tiles.pixels.shape[-2:]))
        if len(set(found.values())) != 1:
            raise InputError(f"sensors have (B, T, Y, X) tokens {found}, expected equal: the same sites and dates")
        return sensors

    def targets(self, batch: Batch, source: SensorSpec) -> list[SensorSpec]:
        return self.sensors(batch)

    def _draw_targets(self, batch: Batch, sensors: list[SensorSpec], source: str, generator: torch.Generator) -> Tensor:
        """Return (S, B) bool, one True per sample: another present sensor with the set probability, else the source."""
        is_other_SB = torch.stack([_is_present(batch.tiles[s.name]) & (s.name != source) for s in sensors]).cpu()
        num_sensors, num_samples = is_other_SB.shape
        is_cross_B = torch.rand(num_samples, generator=generator) < self.config.cross_sensor_probability
        lot_SB = torch.rand(num_sensors, num_samples, generator=generator).masked_fill(~is_other_SB, -1)
        own = [spec.name for spec in sensors].index(source)
        chosen_B = torch.where(is_cross_B & is_other_SB.any(0), lot_SB.argmax(0), own)
        return (torch.arange(num_sensors)[:, None] == chosen_B).to(batch.tiles[source].pixels.device)


def _is_present(tiles: Tiles) -> Tensor:
    return tiles.is_present.flatten()
