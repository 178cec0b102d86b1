"""Keys of earlier steps, the negatives of MoCo (He et al. 2020, arXiv 1911.05722). Legend: N samples, K keys, D features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distributed import gather


class KeyQueue(nn.Module):
    """`keys_KD` of unit length, the same on all ranks: those of a step join in the order of ranks once it is done."""

    keys_KD: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("keys_KD", F.normalize(torch.randn(size, dim, generator=generator), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def wait(self, keys_ND: Tensor) -> None:
        """Let this rank's keys of a micro-batch join at the next `advance`."""
        self._waiting.append(F.normalize(gather(keys_ND.float()), dim=-1))

    @torch.no_grad()
    def advance(self) -> None:
        """Let the keys that wait take the places of the oldest."""
        size = len(self.keys_KD)
        keys, self._waiting = torch.cat(self._waiting)[-size:], []
        places = (torch.arange(len(keys), device=keys.device) + self.place) % size
        self.keys_KD[places] = keys.to(self.keys_KD)
        self.place.copy_((self.place + len(keys)) % size)
