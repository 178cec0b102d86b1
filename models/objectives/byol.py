"""BYOL: predict what a slowly moving copy of oneself makes of another view (Grill et al. 2020, arXiv 2006.07733)."""

import torch.nn.functional as F
from torch import Tensor


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of unit vectors, 2 - 2 cos, a scalar mean over N of (N, D); `target` carries no gradient."""
    return (2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1)).mean()
