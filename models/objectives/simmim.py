"""SimMIM: hide blocks of ground, predict their pixels by one linear map (Xie et al. 2022, arXiv 2111.09886).

This file decides what all objectives share that see hidden ground as mask tokens and score pixels: RingMo, GFM and msGFM
derive from it. One sensor is seen; which sensors are predicted, and what hiding is, they decide.
The mask lives on ground, so sensors of any pixel size share it. Losses are normalised per sample: the mean over ranks
is the loss of the whole batch whatever is invalid (SimMIM divides by the batch's count: the same if all is valid).
Legend: B samples (dates counted as samples), C channel, Y X pixels, y x tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.decoders import PixelDecoder
from models.encoder import Encoder, EncoderConfig, Features
from models.errors import InputError
from models.initialise import initialise
from models.masking import blocks, upsample
from models.objectives.panel import Panel
from models.sensor import SensorSpec

EPS = 1e-5
"""Added to counts of pixels and samples, as SimMIM does: nothing to reconstruct gives 0, not NaN."""


@dataclass(frozen=True)
class SimmimConfig:
    """mask_ratio of the ground is hidden in squares of mask_block_m metres, a whole number of tokens."""

    encoder: EncoderConfig
    mask_ratio: float = 0.6
    mask_block_m: float = 160.0
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        block = self.mask_block_m / self.encoder.token_size_m
        if block < 1 or abs(block - round(block)) > 1e-6:
            raise InputError(
                f"{self._name} has mask_block_m {self.mask_block_m:g}, expected a multiple of token_size_m "
                f"{self.encoder.token_size_m:g}"
            )
        if not 0 < self.mask_ratio < 1:
            raise InputError(f"{self._name} has mask_ratio {self.mask_ratio}, expected between 0 and 1")
        if self.encoder.hidden != "token":
            raise InputError(
                f"{self._name} has an encoder whose hidden ground is '{self.encoder.hidden}', but predicts from the place of "
                f"what is hidden; set encoder.hidden to 'token'"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__.removesuffix("Config").lower()

    @property
    def block_tokens(self) -> int:
        return round(self.mask_block_m / self.encoder.token_size_m)


@dataclass(frozen=True)
class Prediction:
    """One forward pass over the sensor `source`.

    hidden is as `Simmim.hide` returns it; predicted and target (B, C, Y, X) of each predicted sensor are in network units,
    level is what was taken off.
    """

    source: SensorSpec
    hidden: Tensor
    features: Features
    predicted: dict[str, Tensor]
    target: dict[str, Tensor]
    level: dict[str, Tensor]

    def is_hidden(self, sensor: str) -> Tensor:
        """Return (B, Y, X) bool over the pixels of a predicted sensor."""
        return upsample(self.hidden, self.target[sensor].shape[-2] // self.hidden.shape[-2])


class Simmim(nn.Module):
    """One sensor a batch, taking turns, predicts itself. `encoder` is what is kept after training."""

    def __init__(self, config: Any, generator: torch.Generator | None = None) -> None:
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
        """Return scalars: loss, and detached balance and the terms of `score`. The generator is a CPU generator."""
        made = self.predict(batch, generator)
        loss, terms = self.score(made, batch, generator)
        balance = made.features.balance
        loss = loss + self.config.balance_weight * balance
        return {"loss": loss} | {name: value.detach() for name, value in {**terms, "balance": balance}.items()}

    def score(self, made: Prediction, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is trained on, a scalar, and its named terms: reconstruction and 'l1/<sensor>'."""
        error = self.error(made, made.source, batch).mean()
        return error, {"reconstruction": error, f"l1/{made.source.name}": error}

    def error(self, made: Prediction, spec: SensorSpec, batch: Batch) -> Tensor:
        """Return (B,): `masked_l1` over what is hidden and was observed by one predicted sensor."""
        is_scored = batch.tiles[spec.name].is_observed.flatten(0, 1) & made.is_hidden(spec.name)
        return masked_l1(made.predicted[spec.name], made.target[spec.name], is_scored)

    def sensors(self, batch: Batch) -> list[SensorSpec]:
        """Return the batch's sensors in the encoder's order, the same on every rank."""
        for name, tiles in batch.tiles.items():
            self.encoder.spec(name).check(tiles, self.config.encoder.token_size_m)
        return [spec for spec in self.config.encoder.sensors if spec.name in batch.tiles]

    def targets(self, batch: Batch, source: SensorSpec) -> list[SensorSpec]:
        """Return the sensors that are predicted from `source`."""
        return [source]

    def hide(self, tiles: Tiles, spec: SensorSpec, generator: torch.Generator) -> Tensor:
        """Return (B, y, x) bool over tokens or over pixels of `tiles`, on the generator's device."""
        patch = spec.patch_px(self.config.encoder.token_size_m)
        rows, columns = (size // patch for size in tiles.pixels.shape[-2:])
        return blocks(tiles.is_present.numel(), (rows, columns), self.config.block_tokens, self.config.mask_ratio, generator)

    def see(self, pixels: Tensor, hidden: Tensor | None, batch: Batch, spec: SensorSpec, generator: torch.Generator) -> Features:
        """Return what the encoder makes of pixels (B, C, Y, X) in network units of which `hidden` is hidden."""
        tiles = batch.tiles[spec.name]
        is_valid, when = tiles.is_observed.flatten(0, 1), tiles.time_days
        return self.encoder.features(pixels, is_valid, spec.name, hidden, generator, when, batch.lonlat)

    def predict(self, batch: Batch, generator: torch.Generator) -> Prediction:
        """Encode the sensor whose turn it is with hidden ground and run the decoders of its targets on the whole batch.

        No decoder is skipped, whatever is drawn: under ZeRO, a module run by one rank and not by another ends the job.
        """
        sensors = self.sensors(batch)
        source = sensors[batch.index % len(sensors)]
        hidden = self.hide(batch.tiles[source.name], source, generator).to(batch.tiles[source.name].pixels.device)
        predicted, target, level = {}, {}, {}
        for spec in self.targets(batch, source):
            tiles = batch.tiles[spec.name]
            is_hidden = upsample(hidden, tiles.pixels.shape[-2] // hidden.shape[-2])
            target[spec.name], level[spec.name] = self.encoder.normalise(tiles, spec, is_hidden)
        features = self.see(target[source.name], hidden, batch, source, generator)
        for name, wanted in target.items():
            rows, columns = wanted.shape[-2:]
            predicted[name] = self.decoders[name](features.maps[-1])[..., :rows, :columns]
        return Prediction(source, hidden, features, predicted, target, level)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, generator: torch.Generator) -> dict[str, Panel]:
        """Return per predicted sensor what the model makes of the hidden ground, for people to look at."""
        was_training = self.training
        self.eval()
        made = self.predict(batch, generator)
        self.train(was_training)
        return {
            spec.name: Panel(
                is_source=spec.name == made.source.name,
                target=spec.denormalise(made.target[spec.name], made.level[spec.name]),
                prediction=spec.denormalise(made.predicted[spec.name], made.level[spec.name]),
                is_hidden=made.is_hidden(spec.name),
                is_valid=batch.tiles[spec.name].is_observed.flatten(0, 1),
            )
            for spec in self.targets(batch, made.source)
        }


def masked_l1(predicted_BCYX: Tensor, target_BCYX: Tensor, is_scored_BYX: Tensor) -> Tensor:
    """Return (B,) float32: sum of |error| over scored pixels and bands / (number of scored pixels + EPS) / C."""
    error_BYX = F.l1_loss(predicted_BCYX.float(), target_BCYX, reduction="none").sum(1)
    count_B = is_scored_BYX.sum((-2, -1))
    return (error_BYX * is_scored_BYX).sum((-2, -1)) / (count_B + EPS) / predicted_BCYX.shape[1]
