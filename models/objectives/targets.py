"""What a teacher's maps become before a student is compared with them, and the distances, one function each.

Whatever is a statistic of a batch is one of the global batch: the same on any number of ranks, its gradient too.
Legend: B samples of this rank, M of all ranks, y x cells of a map, D width, N tokens, K prototypes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distributed import gather, total

SHRINKAGE = 1e-3
"""Share of the mean variance added to every direction before whitening, so that noise is not blown up without limit."""
TEMPERATURE = 0.05
"""Of both softmaxes over prototypes: with two, a student like its teacher would not be at the minimum."""


def at_size(is_valid_Byx: Tensor, map_ByxD: Tensor) -> Tensor:
    """Return the validity of the last map's cells for the cells of an earlier, finer map."""
    factor = -(-map_ByxD.shape[1] // is_valid_Byx.shape[1])
    finer = is_valid_Byx.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return finer[:, : map_ByxD.shape[1], : map_ByxD.shape[2]]


def coarsened(map_ByxD: Tensor, grid: Sequence[int]) -> Tensor:
    """Return a map's means over the cells of a coarser grid (y, x); the map itself where that is its own."""
    if tuple(map_ByxD.shape[1:3]) == tuple(grid):
        return map_ByxD
    return F.adaptive_avg_pool2d(map_ByxD.permute(0, 3, 1, 2), (grid[0], grid[1])).permute(0, 2, 3, 1)


def whiten(map_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return the map in float32 with zero mean and unit variance in every direction over the batch's valid cells (ZCA)."""
    tokens_ND, weight_N = map_ByxD.float().flatten(0, 2), is_valid_Byx.flatten().float()
    count = total(weight_N.sum()).clamp_min(1)
    centred_ND = tokens_ND - total((tokens_ND * weight_N[:, None]).sum(0)) / count
    covariance_DD = total((centred_ND * weight_N[:, None]).T @ centred_ND) / count
    variance_D, directions_DD = torch.linalg.eigh(covariance_DD)
    scale_D = (variance_D.clamp_min(0) + SHRINKAGE * variance_D.mean().clamp_min(1e-12)).rsqrt()
    return (centred_ND @ (directions_DD * scale_D) @ directions_DD.T).view_as(map_ByxD)


def mean_over_sensors(maps: Sequence[Tensor], are_valid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of several sensors' maps (B, y, x, D) where they are valid, and where any is."""
    if len(maps) == 1:
        return maps[0], are_valid[0]
    weights = [part.float()[..., None] for part in are_valid]
    count = torch.stack(weights).sum(0)
    return torch.stack([m * w for m, w in zip(maps, weights)]).sum(0) / count.clamp_min(1), count[..., 0] > 0


def mean_of_valid(map_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B, D): the mean over valid cells, 0 where none is."""
    weight = is_valid_Byx / is_valid_Byx.sum((1, 2), keepdim=True).clamp_min(1)
    return torch.einsum("byxd,byx->bd", map_ByxD, weight)


def token_distance(made_ByxD: Tensor, wanted_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B,) float32: smooth L1, mean over D and valid cells, 0 where none is valid."""
    distance_Byx = F.smooth_l1_loss(made_ByxD, wanted_ByxD, reduction="none").mean(-1)
    return (distance_Byx * is_valid_Byx).sum((1, 2)) / is_valid_Byx.sum((1, 2)).clamp_min(1)


def pooled_distance(made_ByxD: Tensor, wanted_ByxD: Tensor, is_valid_Byx: Tensor) -> Tensor:
    """Return (B,) float32: smooth L1 of means over valid cells, in units of the wanted means' spread over the batch."""
    made_BD, wanted_BD = (mean_of_valid(part, is_valid_Byx) for part in (made_ByxD, wanted_ByxD))
    spread_D = gather(wanted_BD).std(0, correction=0) + SHRINKAGE
    return F.smooth_l1_loss(made_BD / spread_D, wanted_BD / spread_D, reduction="none").mean(-1)


def relation_distance(made_BD: Tensor, wanted_BE: Tensor, is_present_B: Tensor) -> Tensor:
    """Return a scalar: mean square difference of the cosines between all pairs of samples of the global batch.

    Of centred embeddings, whose widths may differ (relations: Park et al. 2019, arXiv 1904.05068; cosines: Tung & Mori 2019,
    arXiv 1907.09682). 0 with fewer than two samples that are there.
    """
    is_present_M = gather(is_present_B.float()[:, None])[:, 0]
    cosines = []
    for part in (gather(made_BD.float()), gather(wanted_BE.float())):
        centre = (part * is_present_M[:, None]).sum(0) / is_present_M.sum().clamp_min(1)
        unit = F.normalize(part - centre, dim=-1, eps=1e-6)
        cosines.append(unit @ unit.T)
    is_pair_MM = is_present_M[:, None] * is_present_M * (1 - torch.eye(len(is_present_M), device=made_BD.device))
    return ((cosines[0] - cosines[1]).square() * is_pair_MM).sum() / is_pair_MM.sum().clamp_min(1)


def prototype_distance(made_BD: Tensor, wanted_BD: Tensor, is_present_B: Tensor, prototypes_KD: Tensor) -> Tensor:
    """Return (B,) float32: cross-entropy of two soft choices among prototypes, 0 for samples that are absent.

    As DINO's (Caron et al. 2021, arXiv 2104.14294) with a teacher that stands still: its prototypes are fixed directions, its
    centre is the global batch's mean, and both temperatures are one. Both sides are in units of the teacher's spread, not
    each of its own length: a student begins near 0, where a direction is noise.
    """
    present_M1 = gather(is_present_B.float()[:, None])
    centre_D = (gather(wanted_BD) * present_M1).sum(0) / present_M1.sum().clamp_min(1)
    square_M = (gather(wanted_BD) - centre_D).square().sum(-1) * present_M1[:, 0]
    spread = (square_M.sum() / present_M1.sum().clamp_min(1)).sqrt().clamp_min(1e-6)
    made_BK, wanted_BK = ((part.float() - centre_D) @ prototypes_KD.T / (spread * TEMPERATURE) for part in (made_BD, wanted_BD))
    return -(wanted_BK.softmax(-1) * made_BK.log_softmax(-1)).sum(-1) * is_present_B
