"""Is the model learning something, or has it collapsed: small measures over features, experts and reconstructions.

This file decides what is measured. Which value stops a run is decided by whoever watches it.
Legend: B batch, C channel, Y X pixels, D width, E experts.
"""

import torch
from torch import Tensor, nn

from models.moe import MixtureOfExperts

EPS = 1e-12


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
    """Return the mean over D of the standard deviation over B of features scaled to unit length.

    About 1 / sqrt(D) for features spread evenly over directions; 0 when they have collapsed to one point.
    """
    return float(nn.functional.normalize(features_BD.float(), dim=-1).std(0).mean())


def expert_load(module: nn.Module) -> dict[str, Tensor]:
    """Return for every mixture in `module`, by name, the share (E,) of its last tokens that chose each expert."""
    mixtures = [(name, part) for name, part in module.named_modules() if isinstance(part, MixtureOfExperts)]
    return {name: part.last_load for name, part in mixtures if part.last_load is not None}


@torch.no_grad()
def high_frequency_ratio(prediction_BCYX: Tensor, target_BCYX: Tensor) -> float:
    """Return the power of the prediction above half the Nyquist frequency relative to the target's.

    1 for a reconstruction as sharp as the truth, near 0 for a blur.
    """
    return float(_high_power(prediction_BCYX) / _high_power(target_BCYX).clamp_min(EPS))


def _high_power(image_BCYX: Tensor) -> Tensor:
    power = torch.fft.fft2(image_BCYX.float()).abs() ** 2
    y, x = (torch.fft.fftfreq(size, device=power.device).abs() for size in power.shape[-2:])
    return power[..., torch.maximum(y[:, None], x[None, :]) > 0.25].mean()
