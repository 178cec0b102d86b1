"""Is the model learning something, or has it collapsed: small measures over features, experts and reconstructions.

This file decides what is measured. Which value stops a run is decided by whoever watches it.
Legend: B batch, N tokens, C channel, Y X pixels, D width, S sensors, E experts.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.distributed import gather, mean
from models.moe import MixtureOfExperts

EPS = 1e-12
NUM_EMBEDDED, NUM_TURNED, NUM_RECONSTRUCTED = 32, 8, 4
"""Tiles of each rank that are embedded, turned and reconstructed: enough for the measures, few beside a step."""


@torch.no_grad()
def examine(objective: Any, batch: Batch, generator: torch.Generator) -> dict[str, Any]:
    """Return what can be said of `objective` from a batch, as '<measure>/<sensor>': the same on every rank.

    effective_rank, feature_std      of the encoder's pooled embeddings of num_tiles tiles, see below
    projection_rank, projection_std  the same of what the loss compares, where the objective says (`compared`)
    cosine_turned_90, _180           between the embeddings of a tile and of the turned tile: 1 if turning changes nothing
    cosine_others                    between different tiles, which is what the two above must be compared with
    expert_load                      for each mixture the share of the sensor's tokens that each expert had
    high_frequency                   of reconstructions relative to the truth, where the objective makes any

    Of sensors that the encoder knows; a batch may hold others for a teacher. Every rank must call it with the same sensors and
    as many samples. Nothing that is trained or drawn later changes.
    """
    with evaluating(objective):
        found: dict[str, Any] = {}
        known = {spec.name for spec in objective.encoder.config.sensors}
        for name, tiles in ((name, tiles) for name, tiles in batch.tiles.items() if name in known):
            found |= {f"{measure}/{name}": value for measure, value in _examine_sensor(objective, name, tiles).items()}
        if hasattr(objective, "reconstruct"):
            found |= _examine_reconstructions(objective, _first(batch, NUM_RECONSTRUCTED), generator)
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` in evaluation mode; afterwards each part is again in the mode it was in."""
    was_training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, flag in was_training.items():
            part.training = flag


def _examine_sensor(objective: Any, name: str, tiles: Tiles) -> dict[str, Any]:
    def embed(some: Tiles) -> Tensor:
        return objective.encoder.pooled(some, name)[0]

    some = _part(tiles, max(1, NUM_EMBEDDED // tiles.is_present.shape[1]))
    own = embed(some)
    loads = [mean(load[0]).tolist() for load in expert_load(objective.encoder).values()]
    is_there = gather(some.is_observed.flatten(0, 1).flatten(1).any(1, keepdim=True).to(own))[:, 0] > 0
    features = gather(own)[is_there]
    if not len(features):
        return {"num_tiles": 0}
    found: dict[str, Any] = {
        "num_tiles": len(features),
        "effective_rank": effective_rank(features),
        "feature_std": feature_std(features),
        "cosine_others": cosine_of_others(features),
    }
    if hasattr(objective, "compared"):
        projections = gather(objective.compared(own).float())[is_there]
        found |= {"projection_rank": effective_rank(projections), "projection_std": feature_std(projections)}
    few = _part(some, NUM_TURNED)
    for quarters in (1, 2):
        if quarters == 2 or few.pixels.shape[-1] == few.pixels.shape[-2]:
            cosine = cosine_turned(embed, few, quarters, own[: few.is_present.numel()])
            found[f"cosine_turned_{90 * quarters}"] = float(mean(cosine))
    return found | ({"expert_load": loads} if loads else {})


def _examine_reconstructions(objective: Any, batch: Batch, generator: torch.Generator) -> dict[str, float]:
    found = {}
    for name, panel in objective.reconstruct(batch, generator).items():
        is_counted = panel.is_hidden & panel.is_valid
        made, true = (mean(high_frequency_power(image, is_counted)) for image in (panel.prediction, panel.target))
        found[f"high_frequency/{name}"] = float(made / true.clamp_min(EPS))
    return found


def _part(tiles: Tiles, num: int) -> Tiles:
    names = ("pixels", "is_valid", "is_present", "time_days")
    return replace(tiles, **{name: getattr(tiles, name)[:num] for name in names})


def _first(batch: Batch, num: int) -> Batch:
    tiles = {name: _part(part, num) for name, part in batch.tiles.items()}
    return replace(batch, tiles=tiles, lonlat=batch.lonlat[:num], crops=tuple(_first(crop, num) for crop in batch.crops))


@torch.no_grad()
def effective_rank(features_BD: Tensor) -> float:
    """Return the effective rank of centred features, 1 to min(B - 1, D) (Roy & Vetterli, EUSIPCO 2007).

    exp of the entropy of the singular values divided by their sum; 0 if all rows are equal.
    """
    features = features_BD.float()
    singular = torch.linalg.svdvals(features - features.mean(0))
    if singular.sum() <= EPS:
        return 0.0
    share = singular / singular.sum()
    return float((-(share * (share + EPS).log()).sum()).exp())


@torch.no_grad()
def feature_std(features_BD: Tensor) -> float:
    """Return the mean over D of the standard deviation over B of features scaled to unit length, in units of 1 / sqrt(D).

    1 for features spread evenly over directions; 0 when they have collapsed to one point.
    """
    unit = F.normalize(features_BD.float(), dim=-1)
    return float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1])


@torch.no_grad()
def cosine_of_others(features_BD: Tensor) -> float:
    """Return the mean cosine between different rows; 1 for a single one."""
    unit = F.normalize(features_BD.double(), dim=-1)
    num = len(unit)
    return float((unit.sum(0).pow(2).sum() - num) / (num * (num - 1))) if num > 1 else 1.0


@torch.no_grad()
def cosine_turned(embed: Callable[[Tiles], Tensor], tiles: Tiles, quarters: int, own_BD: Tensor | None = None) -> Tensor:
    """Return the mean cosine between the embeddings (B*T, D) of tiles and of the tiles turned by `quarters` of a circle.

    own_BD is embed(tiles), if it is known. Tiles that are absent count as 1 each.
    """
    turned = replace(
        tiles,
        pixels=tiles.pixels.rot90(quarters, (-2, -1)),
        is_valid=tiles.is_valid.rot90(quarters, (-2, -1)),
    )
    return F.cosine_similarity(embed(tiles) if own_BD is None else own_BD, embed(turned), dim=-1).mean()


def expert_load(module: nn.Module, sensor_of_token: Tensor | None = None, num_sensors: int = 1) -> dict[str, Tensor]:
    """Return for every mixture in `module`, by name, the shares (S, E) that experts had of its last call's tokens.

    sensor_of_token (B, N) or (N,) says whose each token is, from 0, and -1 for one that does not count; tokens before the last
    N, such as class token and registers, do not. Without it all tokens are one sensor's.
    """
    found = {}
    for name, part in module.named_modules():
        if not isinstance(part, MixtureOfExperts) or part.last_share_BNE is None:
            continue
        share_BNE = part.last_share_BNE.float()
        of_token = share_BNE.new_zeros(share_BNE.shape[:2]) if sensor_of_token is None else sensor_of_token.to(share_BNE.device)
        share_BNE = share_BNE[:, share_BNE.shape[1] - of_token.shape[-1] :]
        sensors = torch.arange(num_sensors, device=of_token.device)[:, None, None]
        is_sensor_SBN = (of_token == sensors).expand(-1, *share_BNE.shape[:2])
        load_SE = torch.einsum("sbn,bne->se", is_sensor_SBN.float(), share_BNE)
        found[name] = load_SE / load_SE.sum(-1, keepdim=True).clamp_min(EPS)
    return found


@torch.no_grad()
def high_frequency_ratio(prediction_BCYX: Tensor, target_BCYX: Tensor, is_counted_BYX: Tensor | None = None) -> float:
    """Return the power of the prediction's detail relative to the target's.

    1 for a reconstruction as sharp as the truth, near 0 for a blur or an interpolation.
    """
    made, true = (high_frequency_power(image, is_counted_BYX) for image in (prediction_BCYX, target_BCYX))
    return float(made / true.clamp_min(EPS))


def high_frequency_power(image_BCYX: Tensor, is_counted_BYX: Tensor | None = None) -> Tensor:
    """Return the mean square of what a mean over 3 x 3 pixels takes away, a scalar.

    Only where all nine pixels count, so neither masks nor what stands behind them are taken for detail. Along one axis a wave
    of frequency f (cycles a pixel) has (2/3 (1 - cos 2 pi f))^2 of its power left: 0.44 at half the Nyquist frequency, 1.8 at it.
    """
    image = image_BCYX.float()
    if is_counted_BYX is None:
        is_counted_BYX = torch.ones_like(image[:, 0], dtype=torch.bool)
    image = torch.where(is_counted_BYX[:, None], image, 0.0)
    is_whole = F.avg_pool2d(is_counted_BYX.float()[:, None], 3, stride=1) > 1 - 1e-3
    detail = image[..., 1:-1, 1:-1] - F.avg_pool2d(image, 3, stride=1)
    return (detail.pow(2).mean(1, keepdim=True) * is_whole).sum() / is_whole.sum().clamp_min(1)
