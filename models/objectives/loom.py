"""Loom: cross-sensor masked modelling over described bands, our own.

All sensors of a site are woven into one sequence: tokens whose stems are generated from what each band physically is
(`stems/spectral.py`), told place, time and location. A share of the tokens of every sensor is hidden, and with some
probability one sensor whole; a decoder that is told which sensor is wanted where predicts the pixels. The site's pooled
embedding predicts the level and spread of each band of each sensor over the site, seen or not, so that it holds what makes
the site as a whole, and not only what fills holes. An absent sensor is a hidden one that is not scored.
Legend as in `autoencoder.py`; S sensors.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.masking import cross_sensor, independent_groups
from models.objectives.autoencoder import AutoencoderConfig, Encoded, Given, MaskedAutoencoder, Predicted, mean_by_sample
from models.position_embedding import PositionConfig
from models.sensor import SensorSpec
from models.stems.spectral import SpectralStemConfig
from models.stems.stem import StemConfig
from models.vit import VitConfig

METADATA_DROP = 0.2


def loom_encoder(
    backbone: VitConfig, token_size_m: float, sensors: tuple[SensorSpec, ...], stem: StemConfig | None = None
) -> EncoderConfig:
    """Return the encoder: described bands, time and location, dates together, every stage pooled."""
    return EncoderConfig(
        backbone,
        token_size_m,
        sensors,
        pool="stages",
        hidden="absent",
        stem=stem or SpectralStemConfig(),
        positions=PositionConfig(has_time=True, has_location=True, metadata_drop=METADATA_DROP),
        frames="together",
    )


@dataclass(frozen=True)
class LoomConfig(AutoencoderConfig):
    """cross_sensor_probability: that one sensor of a sample is hidden whole. site_weight: of the site's levels and spreads."""

    normalise_patches: bool = False
    cross_sensor_probability: float = 0.5
    site_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cross_sensor_probability <= 1 or self.site_weight < 0:
            raise InputError(
                f"loom has cross_sensor_probability {self.cross_sensor_probability} and site_weight {self.site_weight}, "
                f"expected [0, 1] and >= 0"
            )


class Loom(MaskedAutoencoder):
    """All sensors of the batch at once; `encoder` is what is kept."""

    def __init__(self, encoder: EncoderConfig, config: Any, generator: torch.Generator | None = None) -> None:
        super().__init__(encoder, config, generator)
        self.site = nn.ModuleList(nn.Linear(encoder.pooled_width, config.decoder.embed_dim) for _ in range(2))
        initialise(self.site, generator)

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

    def place(self, part: Given, generator: torch.Generator) -> Tensor:
        """Return the positions and what sensor is wanted."""
        return super().place(part, generator) + self.head.token(part.spec).float()

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        """Return reconstruction and, per sensor, mse/ and site/; each sensor counts as much as another."""
        pooled = self.pooled(encoded)
        terms: dict[str, Tensor] = {}
        for part in made:
            terms[f"mse/{part.given.spec.name}"] = mean_by_sample(self.error(part), part.is_scored)
            if self.config.site_weight:
                terms[f"site/{part.given.spec.name}"] = self.site_error(part, pooled)
        weights = [self.config.site_weight if name.startswith("site/") else 1.0 for name in terms]
        total = torch.stack([weight * term for weight, term in zip(weights, terms.values())]).sum() / len(made)
        return {"reconstruction": total, **terms}

    def pooled(self, encoded: Encoded) -> Tensor:
        """Return (B, D of all stages) float32 over visible tokens, as `Encoder.pool` pools a whole tile."""
        weight = encoded.is_key / encoded.is_key.sum(1, keepdim=True).clamp_min(1)
        maps = [F.layer_norm(m.float(), m.shape[-1:]) for m in encoded.maps[:-1]] + [encoded.maps[-1].float()]
        return torch.cat([torch.einsum("bnd,bn->bd", part, weight) for part in maps], -1)

    def site_error(self, made: Predicted, pooled_BD: Tensor) -> Tensor:
        """Return the squared error of the mean patch of a site and of its spread over patches, a scalar.

        A sample without the sensor counts as 0.

        Both are read off the pooled embedding by a linear map each, and by the head that all tokens of the sensor go
        through.
        """
        spec, is_seen_BN = made.given.spec, made.given.is_seen[:, :, 0].flatten(1)
        weight = is_seen_BN / is_seen_BN.sum(1, keepdim=True).clamp_min(1)
        token = self.head.token(spec).float()
        errors = []
        for group, target_BND in enumerate(made.targets):
            mean = torch.einsum("bnd,bn->bd", target_BND, weight)
            spread = torch.einsum("bnd,bn->bd", (target_BND - mean[:, None]).pow(2), weight).sqrt()
            for linear, wanted in zip(self.site, (mean, spread)):
                inputs = linear(pooled_BD.to(self.enter.weight.dtype)) + token.to(self.enter.weight.dtype)
                tokens = inputs[:, None, None].expand(-1, len(made.targets), -1, -1)
                errors.append((self.head(tokens, spec)[group][:, 0].float() - wanted).pow(2).mean(-1))
        is_present_B = is_seen_BN.any(1)
        return (torch.stack(errors).sum(0) * is_present_B).mean()
