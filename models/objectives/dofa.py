"""DOFA: masked autoencoding with weights generated from wavelengths (Xiong et al. 2024, arXiv 2403.15356)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import Encoder, EncoderConfig
from models.initialise import initialise
from models.objectives.autoencoder import AutoencoderConfig, Encoded, Predicted, mean_by_sample
from models.objectives.mae import Mae
from models.objectives.teacher import Taught
from models.sensor import SensorSpec
from models.stems.dofa import DofaStemConfig
from models.vit import VitConfig


def dofa_encoder(
    backbone: VitConfig, token_size_m: float, sensors: tuple[SensorSpec, ...], stem: DofaStemConfig | None = None
) -> EncoderConfig:
    """Return the encoder whose stem is generated from wavelengths."""
    return EncoderConfig(backbone, token_size_m, sensors, hidden="absent", stem=stem or DofaStemConfig())


@dataclass(frozen=True)
class DofaConfig(AutoencoderConfig):
    """Published: 75 % hidden, targets scaled by patch. teacher_weight: of the cosine, where there is a teacher."""

    teacher_weight: float = 1.0


class Dofa(Mae):
    """One sensor a batch through one generated stem and one generated head."""


class TaughtDofa(Dofa, Taught):
    """With the published second term: minus the cosine to what a frozen teacher makes of the tile with nothing hidden.

    Compared are the mean of the visible tokens, after a linear map, and the teacher's pooled embedding. Published with a ViT-B
    of ImageNet-21k that is shown three bands; here the teacher is any saved encoder of the same sensors.
    """

    def __init__(
        self, encoder: EncoderConfig, config: DofaConfig, teacher: Encoder, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(encoder, config, generator)
        self.take(teacher, encoder.sensors)
        self.to_teacher = nn.Linear(encoder.backbone.embed_dim, teacher.config.pooled_width)
        initialise(self.to_teacher, generator)

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        """Return Mae's terms and 'teacher', the mean of -cosine over tiles that are there; both count in the reconstruction."""
        terms = super().score(made, encoded)
        (part,) = (predicted.given for predicted in made)
        weight = encoded.is_key / encoded.is_key.sum(1, keepdim=True).clamp_min(1)
        mean_BD = torch.einsum("bnd,bn->bd", encoded.maps[-1].float(), weight)
        with torch.no_grad():
            wanted_BD = self.teacher.pooled(part.tiles, part.spec.name)[0]
        cosine_B = F.cosine_similarity(self.to_teacher(mean_BD.to(self.to_teacher.weight.dtype)).float(), wanted_BD, dim=-1)
        teacher = -mean_by_sample(cosine_B[:, None], part.tiles.is_present.reshape(-1, 1))
        return {**terms, "reconstruction": terms["reconstruction"] + self.config.teacher_weight * teacher, "teacher": teacher}
