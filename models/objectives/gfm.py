"""GFM: SimMIM that stays close to what a frozen teacher sees (Mendieta et al., ICCV 2023, arXiv 2302.04476).

The teacher is given the tile with nothing hidden, the student with blocks hidden. What either has made of it by the time
it enters the last stage is averaged over the tile; the student's mean, after a linear map, is drawn to the teacher's by
its cosine. Published with a Swin-B trained on ImageNet-22k as teacher, on the image enlarged to 224 px; here the teacher
is any saved encoder of the same sensors, at the tile's own size.
Legend: B samples (dates counted as samples), y x cells of a map, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig, Features
from models.errors import InputError
from models.initialise import initialise
from models.objectives.distillation import at_size, mean_of_valid
from models.objectives.simmim import Prediction, Simmim, SimmimConfig
from models.objectives.teacher import Taught
from models.swin import Swin, SwinConfig


@dataclass(frozen=True)
class GfmConfig(SimmimConfig):
    """teacher_weight of the cosine beside the error of hidden pixels."""

    teacher_weight: float = 1.0


class Gfm(Simmim, Taught):
    """One sensor a batch, taking turns, predicts itself; `encoder`, the student, is kept after training."""

    def __init__(self, config: GfmConfig, teacher: Encoder, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        self.take(teacher, config.encoder.sensors)
        self.head = nn.Linear(late_width(config.encoder), late_width(teacher.config))
        initialise(self.head, generator)

    def score(self, made: Prediction, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return reconstruction + teacher_weight * teacher, and both; 'teacher' is the mean of -cosine, 0 for absent tiles."""
        error, terms = super().score(made, batch, generator)
        tiles, spec = batch.tiles[made.source.name], self.teacher.spec(made.source.name)
        is_valid = tiles.is_observed.flatten(0, 1)
        with torch.no_grad():
            spec.check(tiles, self.teacher.config.token_size_m)
            pixels, _ = self.teacher.normalise(tiles, spec)
            seen = self.teacher.features(pixels, is_valid, spec.name, None, None, tiles.time_days, batch.lonlat)
            wanted_BD = late_mean(self.teacher, seen, is_valid, spec.name)
        made_BD = self.head(late_mean(self.encoder, made.features, is_valid, spec.name).to(self.head.weight.dtype))
        distance = -F.cosine_similarity(made_BD.float(), wanted_BD).mean()
        return error + self.config.teacher_weight * distance, {**terms, "teacher": distance}


def late_mean(encoder: Encoder, features: Features, is_valid_BYX: Tensor, sensor: str) -> Tensor:
    """Return (B, D) float32: the mean over valid cells of what enters the last stage, in a Swin after merging; 0 without any."""
    backbone, map_ByxD = encoder.backbone, features.maps[-2]
    map_ByxD = backbone.merges[-1](map_ByxD) if isinstance(backbone, Swin) else map_ByxD
    return mean_of_valid(map_ByxD.float(), at_size(encoder.cells(is_valid_BYX, sensor), map_ByxD))


def late_width(config: EncoderConfig) -> int:
    """Return the width of what enters the last stage."""
    backbone, stages = config.backbone, config.backbone.num_stages
    if stages < 2:
        raise InputError(f"a {backbone.kind} of GFM has {stages} stage, expected at least 2: what enters the last one is compared")
    return backbone.width(stages - 1 if isinstance(backbone, SwinConfig) else stages - 2)
