"""Loom: cross-sensor masked modelling over described bands, our own.

Stems are generated from what each band physically is (`stems/spectral.py`); tokens are told place, time and location. A share
of the tokens of every sensor is hidden, and with some probability one sensor whole. Each sensor of a site goes through the
encoder by itself, as it does when it is embedded later; the decoder weaves all of them into one sequence and predicts the
pixels of every sensor, seen or not. Besides, the embeddings that the visible tokens are pooled to

- predict, their mean over the site's sensors, the level and spread of each band of every sensor, so that they hold what makes
  the site as a whole, and not only what fills holes;
- find the other sensors of their site among those of the whole batch (NT-Xent); hidden tokens make the views differ.

An absent sensor is a hidden one that is not scored. Legend as in `autoencoder.py`; S sensors.
"""

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.distributed import gather
from models.encoder import EncoderConfig
from models.errors import InputError
from models.heads import MlpHead
from models.initialise import initialise
from models.masking import cross_sensor, independent_groups
from models.objectives.autoencoder import AutoencoderConfig, Encoded, Given, MaskedAutoencoder, Predicted, mean_by_sample
from models.objectives.simclr import nt_xent
from models.position_embedding import PositionConfig
from models.sensor import SensorSpec
from models.stems.spectral import SpectralStemConfig
from models.stems.stem import StemConfig
from models.vit import VitConfig

METADATA_DROP = 0.2
HEAD_WIDTHS = (512, 128)


def loom_encoder(
    backbone: VitConfig,
    token_size_m: float,
    sensors: tuple[SensorSpec, ...],
    stem: StemConfig | None = None,
    metadata_drop: float = METADATA_DROP,
) -> EncoderConfig:
    """Return the encoder: described bands, time and location, dates together, every stage pooled."""
    return EncoderConfig(
        backbone,
        token_size_m,
        sensors,
        pool="stages",
        hidden="absent",
        stem=stem or SpectralStemConfig(),
        positions=PositionConfig(has_time=True, has_location=True, metadata_drop=metadata_drop),
        frames="together",
    )


@dataclass(frozen=True)
class LoomConfig(AutoencoderConfig):
    """cross_sensor_probability: that one sensor of a sample is hidden whole.

    site_weight: of the site's levels and spreads; contrast_weight: of sensors of a site finding each other, at `temperature`.
    """

    normalise_patches: bool = False
    cross_sensor_probability: float = 0.1
    site_weight: float = 1.0
    contrast_weight: float = 0.3
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cross_sensor_probability <= 1 or min(self.site_weight, self.contrast_weight) < 0 or self.temperature <= 0:
            raise InputError(
                f"loom has cross_sensor_probability {self.cross_sensor_probability}, site_weight {self.site_weight}, "
                f"contrast_weight {self.contrast_weight} and temperature {self.temperature}, expected [0, 1], >= 0, >= 0 and > 0"
            )


@dataclass(frozen=True)
class Woven(Encoded):
    """What was made of all sensors, one after the other; parts, of each by itself."""

    parts: list[Encoded] = field(default_factory=list)


class Loom(MaskedAutoencoder):
    """All sensors of the batch at once; `encoder` is what is kept."""

    def __init__(self, encoder: EncoderConfig, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(encoder, config, generator)
        self.site = nn.ModuleList(nn.Linear(encoder.pooled_width, config.decoder.embed_dim) for _ in range(2))
        self.projector = MlpHead([encoder.pooled_width, *HEAD_WIDTHS])
        for part in (self.site, self.projector):
            initialise(part, generator)

    def sensors(self, batch: Batch) -> list[SensorSpec]:
        return [spec for spec in self.encoder.config.sensors if spec.name in batch.tiles]

    def hide(self, seen: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Hide a share of every sensor's tokens, and of some samples one of several sensors whole."""
        is_present_BS = torch.stack([part.flatten(1).any(1) for part in seen], 1)
        is_whole_BS = cross_sensor(is_present_BS, generator, self.config.cross_sensor_probability)
        hidden = []
        for part, is_whole_B in zip(seen, is_whole_BS.unbind(1)):
            batch, times, groups, rows, columns = part.shape
            valid = part.reshape(batch, times * groups, rows * columns)
            drawn = independent_groups(batch, times * groups, rows * columns, self.config.mask_ratio, generator, valid)
            hidden.append(drawn.view_as(part) | is_whole_B.view(-1, 1, 1, 1, 1))
        return hidden

    def encode(self, given: list[Given], generator: torch.Generator) -> Woven:
        parts = [super(Loom, self).encode([part], generator) for part in self._told(given, generator)]
        maps = [torch.cat(of_parts, 1) for of_parts in zip(*(part.maps for part in parts))]
        memory, prefix, is_key = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("memory", "prefix", "is_key"))
        return Woven(memory, prefix, maps, is_key, torch.stack([part.balance for part in parts]).mean(), parts)

    def _told(self, given: list[Given], generator: torch.Generator) -> list[Given]:
        """In training, tell one sensor of each sample its time and place: of two that know it no ground is needed to pair them."""
        if not self.training:
            return given
        told_B = torch.randint(len(given), (len(given[0].is_seen),), generator=generator, device=generator.device)
        found = []
        for index, part in enumerate(given):
            is_told_B1 = (told_B == index)[:, None].to(part.grid.time_days.device)
            days, where = (x.masked_fill(~is_told_B1, torch.nan) for x in (part.grid.time_days, part.grid.lonlat_deg))
            found.append(replace(part, grid=replace(part.grid, time_days=days, lonlat_deg=where)))
        return found

    def place(self, part: Given, generator: torch.Generator) -> Tensor:
        """Return the positions and what sensor is wanted."""
        return super().place(part, generator) + self.head.token(part.spec).float()

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        """Return reconstruction, per sensor mse/ and site/, per pair contrast/; each sensor and each pair counts alike."""
        assert isinstance(encoded, Woven)
        names = [part.given.spec.name for part in made]
        pooled = [self.pooled(part) for part in encoded.parts]
        is_seen = [part.is_key.any(1) for part in encoded.parts]
        terms = {f"mse/{name}": mean_by_sample(self.error(part), part.is_scored) for name, part in zip(names, made)}
        total = torch.stack(list(terms.values())).mean()
        if self.config.site_weight:
            weight = torch.stack(is_seen).float()
            site = torch.einsum("sbd,sb->bd", torch.stack(pooled), weight / weight.sum(0).clamp_min(1))
            sites = [self.site_error(part, site) for part in made]
            terms |= {f"site/{name}": error for name, error in zip(names, sites)}
            total = total + self.config.site_weight * torch.stack(sites).mean()
        if self.config.contrast_weight and len(made) > 1:
            views = [gather(self.projector(part).float()) for part in pooled]
            there = [gather(part[:, None].float())[:, 0] > 0 for part in is_seen]
            pairs = {
                f"contrast/{names[i]}+{names[j]}": agreement(views[i], views[j], there[i] & there[j], self.config.temperature)
                for i, j in combinations(range(len(made)), 2)
            }
            terms |= pairs
            total = total + self.config.contrast_weight * torch.stack(list(pairs.values())).mean()
        return {"reconstruction": total, **terms}

    def compared(self, pooled_BD: Tensor) -> Tensor:
        """Return what sensors of a site are found by, (B, D'), for health to look at."""
        return self.projector(pooled_BD)

    def pooled(self, encoded: Encoded) -> Tensor:
        """Return (B, D of all stages) float32 over visible tokens, as `Encoder.pool` pools a whole tile."""
        weight = encoded.is_key / encoded.is_key.sum(1, keepdim=True).clamp_min(1)
        maps = [F.layer_norm(m.float(), m.shape[-1:]) for m in encoded.maps[:-1]] + [encoded.maps[-1].float()]
        return torch.cat([torch.einsum("bnd,bn->bd", part, weight) for part in maps], -1)

    def site_error(self, made: Predicted, site_BD: Tensor) -> Tensor:
        """Return the squared error of a sensor's mean patch over a site and of its spread over patches, a scalar.

        Both are read off the site's embedding by a linear map each, and by the head that all tokens of the sensor go through.
        A sample without the sensor counts as 0.
        """
        spec, is_seen_BN = made.given.spec, made.given.is_seen[:, :, 0].flatten(1)
        weight = is_seen_BN / is_seen_BN.sum(1, keepdim=True).clamp_min(1)
        token = self.head.token(spec).float()
        error_B = torch.zeros(len(site_BD), device=site_BD.device)
        for group, target_BND in enumerate(made.targets):
            mean = torch.einsum("bnd,bn->bd", target_BND, weight)
            spread = torch.einsum("bnd,bn->bd", (target_BND - mean[:, None]).pow(2), weight).sqrt()
            for linear, wanted in zip(self.site, (mean, spread)):
                inputs = (linear(site_BD.to(self.enter.weight.dtype)).float() + token).to(self.enter.weight.dtype)
                tokens = inputs[:, None, None].expand(-1, len(made.targets), -1, -1)
                error_B = error_B + (self.head(tokens, spec)[group][:, 0].float() - wanted).pow(2).mean(-1)
        return (error_B * is_seen_BN.any(1)).mean()


def agreement(z0_ND: Tensor, z1_ND: Tensor, is_pair_N: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent among the samples that have both, 0 where fewer than two have."""
    if is_pair_N.sum() < 2:
        return 0.0 * (z0_ND.sum() + z1_ND.sum())
    return nt_xent(z0_ND[is_pair_N], z1_ND[is_pair_N], temperature)
