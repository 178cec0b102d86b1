"""MAE: encode a quarter of the patches, predict the pixels of the rest (He et al. 2022, arXiv 2111.06377)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.masking import independent_groups
from models.objectives.autoencoder import AutoencoderConfig, Encoded, MaskedAutoencoder, Predicted, mean_by_sample
from models.patches import patchify, scale_patches, unpatchify

__all__ = ["Mae", "MaeConfig", "masked_mse", "patchify", "unpatchify"]


def masked_mse(prediction: Tensor, target: Tensor, is_masked: Tensor, normalise_patches: bool) -> Tensor:
    """Return the squared error, mean over a patch's numbers, then over all masked patches of the batch, a scalar.

    prediction, target (B, N, D); is_masked (B, N). With normalise_patches each target patch is scaled to zero mean and unit
    variance (over D - 1, plus 1e-6) first. Nothing masked gives 0.
    """
    wanted = scale_patches(target) if normalise_patches else target
    error_BN = (prediction - wanted).pow(2).mean(-1)
    return (error_BN * is_masked).sum() / is_masked.sum().clamp_min(1)


@dataclass(frozen=True)
class MaeConfig(AutoencoderConfig):
    """mask_ratio of the valid tokens is hidden; the decoder has its own width and depth."""


class Mae(MaskedAutoencoder):
    """One sensor a batch, taking turns; of its valid tokens, of whatever date and group, a random share is hidden."""

    def hide(self, seen: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        (is_seen,) = seen
        batch, times, groups, rows, columns = is_seen.shape
        valid = is_seen.reshape(batch, times * groups, rows * columns)
        return [
            independent_groups(batch, times * groups, rows * columns, self.config.mask_ratio, generator, valid).view_as(is_seen)
        ]

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        (part,) = made
        error = mean_by_sample(self.error(part), part.is_scored)
        return {"reconstruction": error, f"mse/{part.given.spec.name}": error}
