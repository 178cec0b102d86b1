"""Distillation of a frozen teacher encoder into a smaller student encoder of the same sensors.

Feature distillation in the manner of Wei et al. 2022 (arXiv 2205.14141: smooth L1 to whitened teacher tokens), at every
stage, and on their means over the tile, which probes and users see. Whitening is full (ZCA over the batch's tokens), not
per channel: a masked-modelling teacher keeps most of its variance in a few directions, and a student that matches only
those loses what tells classes apart. Teacher and student see the same whole tiles, one sensor per step in turn; each
normalises with its own statistics.
Legend: B samples (dates counted as samples), y x cells of a stage's map, D width of the teacher there, N tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.objectives.teacher import Taught

SHRINKAGE = 1e-3
"""Share of the mean variance added to every direction before whitening, so that noise is not blown up without limit."""


@dataclass(frozen=True)
class DistillationConfig:
    """The student, and the weights of the token term and of the experts' balance beside the pooled term."""

    encoder: EncoderConfig
    grid_weight: float = 1.0
    balance_weight: float = 0.01


class Distillation(Taught):
    """Student and a linear head per stage into the teacher's space; `encoder`, the student, is kept after training."""

    def __init__(self, config: DistillationConfig, teacher: Encoder, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, generator)
        self.take(teacher, config.encoder.sensors)
        student_net, teacher_net = config.encoder.backbone, teacher.config.backbone
        num_stages = teacher_net.num_stages
        if student_net.num_stages != num_stages or config.encoder.token_size_m != teacher.config.token_size_m:
            raise InputError(
                f"student has {student_net.num_stages} stages of {config.encoder.token_size_m:g} m tokens, the teacher "
                f"{num_stages} of {teacher.config.token_size_m:g} m; give the student as many stages and the same tokens"
            )
        self.heads = nn.ModuleList(nn.Linear(student_net.width(i), teacher_net.width(i)) for i in range(num_stages))
        initialise(self.heads, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached pooled, grid and balance. The generator is used by drop_path only."""
        sensors = [spec for spec in self.config.encoder.sensors if spec.name in batch.tiles]
        for name, tiles in batch.tiles.items():
            self.encoder.spec(name).check(tiles, self.config.encoder.token_size_m)
        name = sensors[batch.index % len(sensors)].name
        tiles, teacher = batch.tiles[name], self.teacher
        is_valid = tiles.is_observed.flatten(0, 1)
        is_present_B = is_valid.any(-1).any(-1)
        is_valid_cell = self.encoder.cells(is_valid, name)
        with torch.no_grad():
            seen, _ = teacher.normalise(tiles, teacher.spec(name))
            taught = teacher.features(seen, is_valid, name).maps
            wanted = [whiten(part, at_size(is_valid_cell, part)) for part in taught]
        seen, _ = self.encoder.normalise(tiles, self.encoder.spec(name))
        learnt = self.encoder.features(seen, is_valid, name, generator=generator)
        balance = learnt.balance
        made = [head(part).float() for head, part in zip(self.heads, learnt.maps)]
        stages = [(m, w, at_size(is_valid_cell, w)) for m, w in zip(made, wanted)]
        grid_B = torch.stack([token_distance(*stage) for stage in stages]).mean(0)
        pooled_B = torch.stack([pooled_distance(*stage) for stage in stages]).mean(0)
        pooled, grid = (pooled_B * is_present_B).mean(), grid_B.mean()
        loss = pooled + self.config.grid_weight * grid + self.config.balance_weight * balance
        return {"loss": loss, "pooled": pooled.detach(), "grid": grid.detach(), "balance": balance.detach()}


def at_size(is_valid_Byx: Tensor, map_ByxD: Tensor) -> Tensor:
    """Return the validity of the last map's cells for the cells of an earlier, finer map."""
    factor = -(-map_ByxD.shape[1] // is_valid_Byx.shape[1])
    finer = is_valid_Byx.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return finer[:, : map_ByxD.shape[1], : map_ByxD.shape[2]]


def whiten(map_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return the map in float32 with zero mean and unit variance in every direction over its valid cells (ZCA)."""
    tokens_ND, weight_N = map_ByxD.float().flatten(0, 2), is_valid_Byx.flatten().float()
    count = weight_N.sum().clamp_min(1)
    centred_ND = tokens_ND - (tokens_ND * weight_N[:, None]).sum(0) / count
    covariance_DD = (centred_ND * weight_N[:, None]).T @ centred_ND / count
    variance_D, directions_DD = torch.linalg.eigh(covariance_DD)
    scale_D = (variance_D.clamp_min(0) + SHRINKAGE * variance_D.mean().clamp_min(1e-12)).rsqrt()
    return (centred_ND @ (directions_DD * scale_D) @ directions_DD.T).view_as(map_ByxD)


def mean_of_valid(map_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B, D): the mean over valid cells, 0 where none is."""
    weight = is_valid_Byx / is_valid_Byx.sum((1, 2), keepdim=True).clamp_min(1)
    return torch.einsum("byxd,byx->bd", map_ByxD, weight)


def token_distance(made_ByxD: Tensor, wanted_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B,) float32: smooth L1, mean over D and valid cells, 0 where none is valid."""
    distance_Byx = F.smooth_l1_loss(made_ByxD, wanted_ByxD, reduction="none").mean(-1)
    return (distance_Byx * is_valid_Byx).sum((1, 2)) / is_valid_Byx.sum((1, 2)).clamp_min(1)


def pooled_distance(made_ByxD: Tensor, wanted_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B,) float32: smooth L1 between means over valid cells, in units of the wanted means' spread over the batch."""
    made_BD, wanted_BD = (mean_of_valid(part, is_valid_Byx) for part in (made_ByxD, wanted_ByxD))
    spread_D = wanted_BD.std(0, correction=0) + SHRINKAGE
    return F.smooth_l1_loss(made_BD / spread_D, wanted_BD / spread_D, reduction="none").mean(-1)
