"""Is the model learning something, or has it collapsed: small measures over features, experts and reconstructions.

This file decides what is measured. Which value stops a run is decided by whoever watches it.
Legend: B batch, N tokens, C channel, Y X pixels, D width, S sensors, E experts.
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


def expert_load(module: nn.Module, sensor_of_token: Tensor | None = None, num_sensors: int = 1) -> dict[str, Tensor]:
    """Return for every mixture in `module`, by name, the shares (sensors, E) that experts had of its last call's tokens.

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
        is_sensor_SBN = (of_token == torch.arange(num_sensors, device=of_token.device)[:, None, None]).expand(
            -1, *share_BNE.shape[:2]
        )
        load_SE = torch.einsum("sbn,bne->se", is_sensor_SBN.float(), share_BNE)
        found[name] = load_SE / load_SE.sum(-1, keepdim=True).clamp_min(EPS)
    return found


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
