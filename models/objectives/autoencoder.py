"""What the masked autoencoders share: encode the tokens that are visible, decode all, compare patches.

This file decides how tokens of any sensors, dates and groups of bands are taken out and put back. Objectives decide which
sensors of a batch take part, what is hidden and what counts as error.
Legend: B samples, T dates, G groups of bands, y x tokens, N tokens of a sensor (T * G * y * x), M tokens of all sensors,
D width, C channel, Y X pixels.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.distributed import mean
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.gather import take
from models.initialise import initialise
from models.masking import upsample
from models.objectives.panel import Panel
from models.patches import patchify, scale_patches, unpatchify, unscale_patches
from models.position_embedding import PositionConfig, PositionEmbedding, TokenGrid
from models.sensor import SensorSpec
from models.stems.stem import MaskToken, is_mostly_invalid
from models.vit import Vit, VitConfig

EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderConfig:
    """The decoder's own width, depth and positions; which share is hidden; whether target patches are scaled to unit variance.

    asked_share: of the hidden tokens in training, those that are decoded and scored (CrossMAE, Fu et al. 2024, arXiv 2401.14391).
    """

    decoder: VitConfig
    mask_ratio: float = 0.75
    normalise_patches: bool = True
    positions: PositionConfig = field(default_factory=PositionConfig)
    balance_weight: float = 0.01
    asked_share: float = 1.0

    def __post_init__(self) -> None:
        if self.decoder.has_class_token or self.decoder.num_registers:
            raise InputError("a decoder takes the encoder's class token and registers; it can have none of its own")
        if not 0 < self.mask_ratio < 1:
            raise InputError(f"mask_ratio is {self.mask_ratio}, expected between 0 and 1")
        if not 0 < self.asked_share <= 1:
            raise InputError(f"asked_share is {self.asked_share}, expected above 0, at most 1")


@dataclass(frozen=True)
class Given:
    """One sensor's part of a batch before it is encoded.

    tiles as they came; pixels (B*T, C, Y, X) in network units and the level taken off; grid of the tokens.
    is_seen, is_hidden, is_dropped (B, T, G, y, x): observed; taken from the encoder (what is not observed is, too); from the
    decoder, too.
    """

    spec: SensorSpec
    tiles: Tiles
    pixels: Tensor
    level: Tensor
    grid: TokenGrid
    is_seen: Tensor
    is_hidden: Tensor
    is_dropped: Tensor


@dataclass(frozen=True)
class Predicted:
    """One sensor's patches, per group of bands (B, T*y*x, patch^2 * bands) in network units; is_scored (B, T, G, y, x)."""

    given: Given
    patches: list[Tensor]
    targets: list[Tensor]
    is_scored: Tensor


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of a batch.

    memory (B, M, W) and prefix (B, P, W) as the decoder takes them; maps, the visible tokens (B, kept, D) after each of the
    encoder's taps; is_key (B, kept), False for those that only fill up; balance, the experts' loss.
    """

    memory: Tensor
    prefix: Tensor
    maps: list[Tensor]
    is_key: Tensor
    balance: Tensor


class MaskedAutoencoder(nn.Module):
    """Encoder of what is visible, a small transformer over all places, heads to pixels. `encoder` is what is kept."""

    def __init__(self, encoder: EncoderConfig, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not isinstance(encoder.backbone, VitConfig) or encoder.hidden != "absent":
            raise InputError("a masked autoencoder needs a vit whose hidden tokens are absent; set encoder.hidden to 'absent'")
        self.config = config
        self.encoder = Encoder(encoder, generator)
        width = config.decoder.embed_dim
        self.enter = nn.Linear(encoder.backbone.embed_dim, width)
        self.mask_token = MaskToken(width)
        self.positions = PositionEmbedding(config.positions, width)
        self.decoder = Vit(config.decoder)
        self.head = self.build_head(encoder)
        for part in (self.enter, self.mask_token, self.positions, self.decoder, self.head):
            initialise(part, generator)

    def build_head(self, encoder: EncoderConfig) -> Any:
        """Return the module that leads from the decoder's tokens to pixels, a `Head` unless `compare` is another too."""
        return encoder.stem.build_head(encoder.sensors, encoder.token_size_m, self.config.decoder.embed_dim)

    def sensors(self, batch: Batch) -> list[SensorSpec]:
        """Return the sensors that take part in this step, the same on every rank: one in turn."""
        found = [spec for spec in self.encoder.config.sensors if spec.name in batch.tiles]
        return [found[batch.index % len(found)]]

    def hide(self, seen: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Return what to hide, for each sensor like `seen` (B, T, G, y, x), both on the generator's device."""
        raise NotImplementedError

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        """Return named terms, scalars; 'reconstruction' is what is trained on."""
        raise NotImplementedError

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached balance and terms of the objective. The generator is a CPU generator."""
        made, encoded, balance = self.predict(batch, generator)
        terms = self.score(made, encoded)
        loss = terms["reconstruction"] + self.config.balance_weight * balance
        return {"loss": loss} | {name: value.detach() for name, value in {**terms, "balance": balance}.items()}

    def predict(self, batch: Batch, generator: torch.Generator) -> tuple[list[Predicted], Encoded, Tensor]:
        """Return the prediction of every place of every sensor that takes part, what it is made from, the balance loss."""
        given = self.give(batch, generator)
        encoded = self.encode(given, generator)
        outputs, balance = self.decode(given, encoded, generator)
        return [self.compare(part, output) for part, output in zip(given, outputs)], encoded, encoded.balance + balance

    def give(self, batch: Batch, generator: torch.Generator) -> list[Given]:
        """Return the sensors' tiles in network units, with what is hidden from the encoder."""
        encoder, token_m = self.encoder, self.encoder.config.token_size_m
        specs, seen = self.sensors(batch), []
        for spec in specs:
            tiles = batch.tiles[spec.name]
            spec.check(tiles, token_m)
            groups = len(encoder.config.stem.groups(spec))
            is_seen = ~is_mostly_invalid(tiles.is_observed.flatten(0, 1), spec.patch_px(token_m))
            seen.append(self._by_sample(is_seen, tiles.is_present.shape, groups))
        hidden = self.hide([part.to(generator.device) for part in seen], generator)
        made = []
        for spec, is_seen, is_hidden in zip(specs, seen, hidden):
            tiles, is_hidden = batch.tiles[spec.name], is_hidden.to(is_seen.device) | ~is_seen
            is_hidden_px = upsample(is_hidden.all(2).flatten(0, 1), spec.patch_px(token_m))
            pixels, level = encoder.normalise(tiles, spec, is_hidden_px)
            days, where = tiles.time_days, batch.lonlat
            if encoder.config.frames == "apart":
                days, where = days.reshape(-1, 1), where.repeat_interleave(days.shape[1], 0)
            times, groups, rows, columns = is_seen.shape[1:]
            grid = TokenGrid(times, groups, rows, columns, days, where)
            made.append(Given(spec, tiles, pixels, level, grid, is_seen, is_hidden, self.drop(is_hidden, generator)))
        return made

    def drop(self, is_hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Return which of the hidden tokens (B, T, G, y, x) are not decoded in training."""
        if self.config.asked_share == 1 or not self.training:
            return torch.zeros_like(is_hidden)
        lot = torch.rand(is_hidden.shape, generator=generator, device=generator.device)
        return is_hidden & (lot >= self.config.asked_share).to(is_hidden.device)

    def _by_sample(self, is_seen: Tensor, shape: tuple[int, ...], groups: int) -> Tensor:
        """Return (B, T, G, y, x) of (B*T, y, x); dates that are encoded apart are samples of their own."""
        samples = is_seen[:, None] if self.encoder.config.frames == "apart" else is_seen.unflatten(0, tuple(shape))
        return samples[:, :, None].expand(-1, -1, groups, -1, -1)

    def encode(self, given: list[Given], generator: torch.Generator) -> Encoded:
        """Encode the visible tokens; a sample with fewer than others is filled up with ones that nobody looks at."""
        is_hidden = torch.cat([part.is_hidden.flatten(1) for part in given], 1)
        num_tokens, num_kept = is_hidden.shape[1], int((~is_hidden).sum(1).max())
        order = is_hidden.long().argsort(dim=1, stable=True)
        kept = order[:, :num_kept]
        is_key = ~is_hidden.gather(1, kept)
        visible = self.encode_tokens(given, kept, generator)
        maps, prefix, balance = self.encoder.backbone(visible, None if is_key.all() else is_key, generator)
        seen = self.mask_token(self.enter(maps[-1]), ~is_key)
        places = torch.cat([seen, self.mask_token.token.to(seen).expand(len(seen), num_tokens - num_kept, -1)], 1)
        # Back to where they came from: place order[i] holds what stands at i.
        places = take(places, order.argsort(1))
        return Encoded(places, self.enter(prefix), maps, is_key, balance)

    def encode_tokens(self, given: list[Given], kept: Tensor, generator: torch.Generator) -> Tensor:
        """Return the tokens (B, kept, D) that the encoder is given: those of all sensors, one after the other, at `kept`."""
        if len(given) == 1:
            (part,) = given
            return self.encoder.some_tokens(part.pixels, part.spec, part.grid, kept, generator)
        parts = []
        for part in given:
            every = torch.arange(part.grid.num_tokens, device=kept.device).expand(len(kept), -1)
            parts.append(self.encoder.some_tokens(part.pixels, part.spec, part.grid, every, generator))
        return take(torch.cat(parts, 1), kept)

    def decode(self, given: list[Given], encoded: Encoded, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Return the decoder's tokens (B, N, W) of each sensor, anything where they are dropped, and its balance loss."""
        memory, prefix = encoded.memory, encoded.prefix
        positions = torch.cat([self.place(part, generator).expand(len(memory), -1, -1) for part in given], 1)
        places, sizes = memory + positions.to(memory), [part.grid.num_tokens for part in given]
        is_dropped = torch.cat([part.is_dropped.flatten(1) for part in given], 1)
        if not is_dropped.any():
            outputs, _, balance = self.decoder(torch.cat([prefix, places], 1), None, generator)
            return list(outputs[-1][:, prefix.shape[1] :].split(sizes, 1)), balance
        order = is_dropped.long().argsort(dim=1, stable=True)[:, : int((~is_dropped).sum(1).max())]
        is_key = F.pad(~is_dropped.gather(1, order), (prefix.shape[1], 0), value=True)
        inputs = torch.cat([prefix, take(places, order)], 1)
        outputs, _, balance = self.decoder(inputs, None if is_key.all() else is_key, generator)
        index = order[..., None].expand(-1, -1, places.shape[-1])
        decoded = torch.zeros_like(places).scatter(1, index, outputs[-1][:, prefix.shape[1] :].to(places))
        return list(decoded.split(sizes, 1)), balance

    def place(self, part: Given, generator: torch.Generator) -> Tensor:
        """Return what the decoder is told of each place of one sensor, (B or 1, N, D)."""
        return self.positions(part.grid, generator)

    def compare(self, part: Given, output_BND: Tensor) -> Predicted:
        """Return predicted patches beside the wanted ones."""
        spec, grid = part.spec, part.grid
        tokens = output_BND.unflatten(1, (grid.times, grid.groups, -1)).transpose(1, 2).flatten(2, 3)
        patches = [patches.float() for patches in self.head(tokens, spec)]
        targets = self.targets(part, part.pixels)
        return Predicted(part, patches, targets, part.is_hidden & part.is_seen & ~part.is_dropped)

    def targets(self, part: Given, pixels: Tensor) -> list[Tensor]:
        """Return the patches of `pixels` (B*T, C, Y, X), per group of bands (B, T*y*x, patch^2 * bands)."""
        patch, batch = part.spec.patch_px(self.encoder.config.token_size_m), len(part.is_seen)
        groups = self.encoder.config.stem.groups(part.spec)
        every = tuple(range(pixels.shape[1]))
        chosen = [pixels if bands == every else pixels[:, list(bands)] for bands in groups]
        return [patchify(part, patch).reshape(batch, -1, patch**2 * part.shape[1]) for part in chosen]

    def error(self, made: Predicted, power: int = 2) -> Tensor:
        """Return (B, T, G, y, x): mean |error|^power of each patch, of scaled targets where the configuration says so."""
        errors = []
        for patches, target in zip(made.patches, made.targets):
            wanted = scale_patches(target) if self.config.normalise_patches else target
            apart = patches - wanted
            errors.append((apart.square() if power == 2 else apart.abs().pow(power)).mean(-1))
        shape = (len(made.is_scored), made.given.grid.times, *made.is_scored.shape[3:])
        return torch.stack([error.view(shape) for error in errors], 2)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, generator: torch.Generator) -> dict[str, Panel]:
        """Return what the model makes of hidden ground, for people to look at: scaled patches in the target's mean and spread."""
        was_training = self.training
        self.eval()
        made, _, _ = self.predict(batch, generator)
        self.train(was_training)
        return {part.given.spec.name: self._panel(part, batch, index == 0) for index, part in enumerate(made)}

    def _panel(self, made: Predicted, batch: Batch, is_source: bool) -> Panel:
        given, token_m = made.given, self.encoder.config.token_size_m
        patch, rows, columns = given.spec.patch_px(token_m), given.grid.rows, given.grid.columns
        # Bands of no group are neither seen nor predicted: they are shown as they are.
        image = given.pixels.clone()
        for bands, patches, target in zip(self.encoder.config.stem.groups(given.spec), made.patches, made.targets):
            shown = unscale_patches(patches, target) if self.config.normalise_patches else patches
            image[:, list(bands)] = unpatchify(shown.reshape(len(image), rows * columns, -1), patch, (rows, columns))
        target, prediction = (given.spec.denormalise(x, given.level) for x in (given.pixels, image))
        is_hidden = upsample(given.is_hidden.any(2).flatten(0, 1), patch)
        return Panel(is_source, target, prediction, is_hidden, batch.tiles[given.spec.name].is_observed.flatten(0, 1))


def mean_by_sample(error: Tensor, is_scored: Tensor) -> Tensor:
    """Return the mean of `error` (B, ...) over what is scored of each sample, then over the samples that have any, a scalar.

    The mean over ranks is that of the whole batch, whatever is invalid; 0 if no sample of any rank has anything to score.
    """
    error_B, count_B = (error * is_scored).flatten(1).sum(1), is_scored.flatten(1).sum(1)
    num_scored = mean((count_B > 0).sum().float())
    return (error_B / count_B.clamp_min(1)).sum() / num_scored.clamp_min(EPS)
