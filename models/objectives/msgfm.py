"""msGFM: cross-sensor masked image modelling (Han et al., CVPR 2024, arXiv 2404.01260).

One sensor is seen, with part of the ground hidden; what is hidden is predicted in the pixels of the same sensor or of
another one over the same site. Needs views in which the sensors of a batch cover the same sites at the same times.
The mask lives on ground, so sensors of any pixel size share it. Losses are normalised per sample: the mean over ranks
is the loss of the whole batch whatever is invalid (SimMIM divides by the batch's count: the same if all is valid).
Legend: B samples (dates counted as samples), S sensors, C channel, Y X pixels, y x tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.decoders import PixelDecoder
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.masking import blocks, upsample
from models.objectives.panel import Panel
from models.sensor import SensorSpec

EPS = 1e-5
"""Added to counts of pixels and samples, as SimMIM does: nothing to reconstruct gives 0, not NaN."""


@dataclass(frozen=True)
class MsgfmConfig:
    """mask_ratio of the ground is hidden in squares of mask_block_m metres, a whole number of tokens.

    A sample that has another sensor reconstructs it with cross_sensor_probability, else itself.
    """

    encoder: EncoderConfig
    mask_ratio: float = 0.6
    mask_block_m: float = 160.0
    cross_sensor_probability: float = 0.5
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        block = self.mask_block_m / self.encoder.token_size_m
        if block < 1 or abs(block - round(block)) > 1e-6:
            raise InputError(
                f"msgfm has mask_block_m {self.mask_block_m:g}, expected a multiple of token_size_m {self.encoder.token_size_m:g}"
            )
        if not 0 < self.mask_ratio < 1 or not 0 <= self.cross_sensor_probability <= 1:
            raise InputError(
                f"msgfm has mask_ratio {self.mask_ratio} and cross_sensor_probability {self.cross_sensor_probability}, "
                f"expected (0, 1) and [0, 1]"
            )

    @property
    def block_tokens(self) -> int:
        return round(self.mask_block_m / self.encoder.token_size_m)


@dataclass(frozen=True)
class _Prediction:
    """One forward pass: the source's name and, per sensor, prediction and target in network units with their level."""

    source: str
    mask_Byx: Tensor
    balance: Tensor
    predicted: dict[str, Tensor]
    target: dict[str, Tensor]
    level: dict[str, Tensor]


class Msgfm(nn.Module):
    """Encoder, one decoder per sensor, and the loss. `encoder` is what is kept after training."""

    def __init__(self, config: MsgfmConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, generator)
        backbone = config.encoder.backbone
        width, stride_m = backbone.width(backbone.num_stages - 1), backbone.stride * config.encoder.token_size_m
        self.decoders = nn.ModuleDict(
            {s.name: PixelDecoder(width, s.num_bands, s.patch_px(stride_m)) for s in config.encoder.sensors}
        )
        initialise(self.decoders, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached reconstruction, balance, 'l1/<source>-><target>' per sensor of `batch`.

        An l1 term is the mean over the samples that had this target, 0 if none had. The generator is a CPU generator.
        """
        sensors = self._sensors(batch)
        made = self._predict(batch, sensors, generator)
        is_target_SB = self._draw_targets(batch, sensors, made.source, generator)
        terms: dict[str, Tensor] = {}
        total = torch.zeros((), device=made.mask_Byx.device)
        for spec, is_target_B in zip(sensors, is_target_SB):
            is_scored = batch.tiles[spec.name].is_observed.flatten(0, 1) & self._hidden_px(made.mask_Byx, spec)
            error_B = masked_l1(made.predicted[spec.name], made.target[spec.name], is_scored)
            error_B = error_B * is_target_B.to(error_B)
            total = total + error_B.mean()
            terms[f"l1/{made.source}->{spec.name}"] = (error_B.sum() / (is_target_B.sum() + EPS)).detach()
        loss = total + self.config.balance_weight * made.balance
        return {"loss": loss, "reconstruction": total.detach(), "balance": made.balance.detach(), **terms}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, generator: torch.Generator) -> dict[str, Panel]:
        """Return per sensor of `batch` what the model makes of the hidden ground, for people to look at."""
        sensors = self._sensors(batch)
        was_training = self.training
        self.eval()
        made = self._predict(batch, sensors, generator)
        self.train(was_training)
        return {
            spec.name: Panel(
                is_source=spec.name == made.source,
                target=spec.denormalise(made.target[spec.name], made.level[spec.name]),
                prediction=spec.denormalise(made.predicted[spec.name], made.level[spec.name]),
                is_hidden=self._hidden_px(made.mask_Byx, spec),
                is_valid=batch.tiles[spec.name].is_observed.flatten(0, 1),
            )
            for spec in sensors
        }

    def _sensors(self, batch: Batch) -> list[SensorSpec]:
        """Return the batch's sensors in the encoder's order, the same on every rank; refuse what cannot be paired."""
        for name, tiles in batch.tiles.items():
            self.encoder.spec(name).check(tiles, self.config.encoder.token_size_m)
        sensors = [spec for spec in self.config.encoder.sensors if spec.name in batch.tiles]
        found = {spec.name: (*batch.tiles[spec.name].is_present.shape, *self._grid(batch, spec)) for spec in sensors}
        if len(set(found.values())) != 1:
            raise InputError(f"sensors have (B, T, Y, X) tokens {found}, expected equal: the same sites and dates")
        return sensors

    def _grid(self, batch: Batch, spec: SensorSpec) -> tuple[int, int]:
        patch = spec.patch_px(self.config.encoder.token_size_m)
        rows, columns = batch.tiles[spec.name].pixels.shape[-2:]
        return rows // patch, columns // patch

    def _hidden_px(self, mask_Byx: Tensor, spec: SensorSpec) -> Tensor:
        return upsample(mask_Byx, spec.patch_px(self.config.encoder.token_size_m))

    def _predict(self, batch: Batch, sensors: list[SensorSpec], generator: torch.Generator) -> _Prediction:
        """Encode the source with hidden ground and run every decoder of the batch on the whole batch.

        No decoder is skipped, whatever is drawn: under ZeRO, a module run by one rank and not by another ends the job.
        """
        source = sensors[batch.index % len(sensors)]
        tiles = batch.tiles[source.name]
        num_samples, device = tiles.is_present.numel(), tiles.pixels.device
        config = self.config
        mask_Byx = blocks(num_samples, self._grid(batch, source), config.block_tokens, config.mask_ratio, generator)
        mask_Byx = mask_Byx.to(device)
        target, level = {}, {}
        for spec in sensors:
            hidden = self._hidden_px(mask_Byx, spec)
            target[spec.name], level[spec.name] = self.encoder.normalise(batch.tiles[spec.name], spec, hidden)
        is_valid = tiles.is_observed.flatten(0, 1)
        features = self.encoder.features(target[source.name], is_valid, source.name, mask_Byx, generator)
        predicted = {}
        for spec in sensors:
            rows, columns = target[spec.name].shape[-2:]
            predicted[spec.name] = self.decoders[spec.name](features.maps[-1])[..., :rows, :columns]
        return _Prediction(source.name, mask_Byx, features.balance, predicted, target, level)

    def _draw_targets(self, batch: Batch, sensors: list[SensorSpec], source: str, generator: torch.Generator) -> Tensor:
        """Return (S, B) bool, one True per sample: another present sensor with the set probability, else the source."""
        is_other_SB = torch.stack([_is_present(batch.tiles[s.name]) & (s.name != source) for s in sensors]).cpu()
        num_sensors, num_samples = is_other_SB.shape
        is_cross_B = torch.rand(num_samples, generator=generator) < self.config.cross_sensor_probability
        lot_SB = torch.rand(num_sensors, num_samples, generator=generator).masked_fill(~is_other_SB, -1)
        own = [spec.name for spec in sensors].index(source)
        chosen_B = torch.where(is_cross_B & is_other_SB.any(0), lot_SB.argmax(0), own)
        return (torch.arange(num_sensors)[:, None] == chosen_B).to(batch.tiles[source].pixels.device)


def masked_l1(predicted_BCYX: Tensor, target_BCYX: Tensor, is_scored_BYX: Tensor) -> Tensor:
    """Return (B,) float32: sum of |error| over scored pixels and bands / (number of scored pixels + EPS) / C."""
    error_BYX = F.l1_loss(predicted_BCYX.float(), target_BCYX, reduction="none").sum(1)
    count_B = is_scored_BYX.sum((-2, -1))
    return (error_BYX * is_scored_BYX).sum((-2, -1)) / (count_B + EPS) / predicted_BCYX.shape[1]


def _is_present(tiles: Tiles) -> Tensor:
    return tiles.is_present.flatten()
