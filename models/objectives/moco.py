"""MoCo: a query finds its key among many, keys made by a slowly moving copy (He et al. 2020, arXiv 1911.05722)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(query: Tensor, positive_key: Tensor, negative_keys: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each query's key, a scalar mean over N.

    query, positive_key (N, D), row i belonging together; negative_keys (K, D), the same for all queries. All are scaled to
    unit length here; keys carry no gradient.
    """
    query, positive_key, negative_keys = (F.normalize(x, dim=-1) for x in (query, positive_key.detach(), negative_keys.detach()))
    positive_N1 = (query * positive_key).sum(-1, keepdim=True)
    logits = torch.cat([positive_N1, query @ negative_keys.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def in_batch_info_nce(query: Tensor, keys: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Return MoCo v3's loss for one direction: the other keys of the batch are the negatives, times 2 temperature.

    query (N, D); keys (M, D) of the global batch, those of these queries from row `first` on (Chen et al. 2021,
    arXiv 2104.02057).
    """
    query, keys = F.normalize(query, dim=-1), F.normalize(keys.detach(), dim=-1)
    own = torch.arange(len(query), device=query.device) + first
    return 2 * temperature * F.cross_entropy(query @ keys.T / temperature, own)
