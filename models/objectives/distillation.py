"""Distillation of a frozen teacher encoder into a smaller student of the same sensors.

Feature distillation as in GFM (Mendieta et al., ICCV 2023, arXiv 2302.04476: cosine on projected pooled features) with
a smooth-L1 term on LayerNormed tokens (Wei et al. 2022, arXiv 2205.14141), so that dense tasks are taught too. Teacher
and student see the same whole tiles, one sensor per step in turn; each normalises with its own statistics.
Legend: B samples (dates counted as samples), y x cells of the last map, D width of the teacher.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise


@dataclass(frozen=True)
class DistillationConfig:
    """The student, and the weights of the token term and of the experts' balance beside the pooled term."""

    encoder: EncoderConfig
    grid_weight: float = 1.0
    balance_weight: float = 0.01


class Distillation(nn.Module):
    """Student and two linear heads into the teacher's space; `encoder`, the student, is kept after training.

    The teacher is no submodule: not trained, saved, counted or sharded. It follows `.to(...)`, itself, not a copy.
    """

    def __init__(self, config: DistillationConfig, teacher: Encoder, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for spec in config.encoder.sensors:
            taught = teacher.spec(spec.name)
            if (taught.bands, taught.unit, taught.gsd_m) != (spec.bands, spec.unit, spec.gsd_m):
                raise InputError(f"student's sensor '{spec.name}' is {spec}, expected as in the teacher: {taught}")
        self.config = config
        self.encoder = Encoder(config.encoder, generator)
        self._teacher = (teacher.eval().requires_grad_(False),)
        student_swin, teacher_swin = config.encoder.swin, teacher.config.swin
        self.pooled_head = nn.Linear(config.encoder.pooled_width, teacher.config.pooled_width)
        self.grid_head = nn.Linear(
            student_swin.width(len(student_swin.depths) - 1), teacher_swin.width(len(teacher_swin.depths) - 1)
        )
        initialise(self.pooled_head, generator)
        initialise(self.grid_head, generator)

    def _apply(self, fn: Any, recurse: bool = True) -> "Distillation":
        super()._apply(fn, recurse)
        self._teacher[0]._apply(fn)
        return self

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached pooled, grid and balance. The generator is used by drop_path only."""
        sensors = [spec for spec in self.config.encoder.sensors if spec.name in batch.tiles]
        for name, tiles in batch.tiles.items():
            self.encoder.spec(name).check(tiles, self.config.encoder.token_size_m)
        name = sensors[batch.index % len(sensors)].name
        tiles, teacher = batch.tiles[name], self._teacher[0]
        is_valid = tiles.is_observed.flatten(0, 1)
        is_present_B = is_valid.any(-1).any(-1)
        with torch.no_grad():
            seen, _ = teacher.normalise(tiles, teacher.spec(name))
            taught, _ = teacher.features(seen, is_valid, name)
            taught_BD = teacher.pool(taught, teacher.cells(is_valid, name))
        seen, _ = self.encoder.normalise(tiles, self.encoder.spec(name))
        learnt, balance = self.encoder.features(seen, is_valid, name, generator=generator)
        is_valid_cell = self.encoder.cells(is_valid, name)
        pooled_BD = self.pooled_head(self.encoder.pool(learnt, is_valid_cell).to(self.pooled_head.weight.dtype))

        pooled_B = 1 - F.cosine_similarity(pooled_BD.float(), taught_BD, dim=-1)
        grid_B = token_distance(self.grid_head(learnt[-1]), taught[-1], is_valid_cell)
        pooled, grid = (pooled_B * is_present_B).mean(), grid_B.mean()
        loss = pooled + self.config.grid_weight * grid + self.config.balance_weight * balance
        return {"loss": loss, "pooled": pooled.detach(), "grid": grid.detach(), "balance": balance.detach()}


def token_distance(learnt_ByxD: Tensor, taught_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B,) float32: smooth L1 to the LayerNormed teacher map, mean over the student's valid cells, 0 where none.

    The teacher's map is brought to the student's grid by area means or, where it is coarser, bilinearly.
    """
    taught = F.layer_norm(taught_ByxD.float(), taught_ByxD.shape[-1:]).permute(0, 3, 1, 2)
    size = (learnt_ByxD.shape[1], learnt_ByxD.shape[2])
    if taught.shape[-2:] != size:
        is_finer = taught.shape[-2] >= size[0] and taught.shape[-1] >= size[1]
        taught = F.adaptive_avg_pool2d(taught, size) if is_finer else F.interpolate(taught, size, mode="bilinear")
    distance_Byx = F.smooth_l1_loss(learnt_ByxD.float(), taught.permute(0, 2, 3, 1), reduction="none").mean(-1)
    return (distance_Byx * is_valid_Byx).sum((1, 2)) / is_valid_Byx.sum((1, 2)).clamp_min(1)
