"""An encoder and a head that are trained together on labels, each layer at its own rate.

Legend: B batch, T time, D width of an embedding, K outputs, Y X pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.dense_head import DenseHead
from models.encoder import Encoder


class PooledHead(nn.Module):
    """One linear layer over what probes see (`compared_dates`); begins with zeros. A sensor that is not given is at 0."""

    def __init__(self, width: int, num_dates: Mapping[str, int], num_outputs: int) -> None:
        super().__init__()
        self.sizes = {name: width * len(compared_dates(torch.empty(1, dates, 0))) for name, dates in num_dates.items()}
        self.linear = nn.Linear(sum(self.sizes.values()), num_outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K) float32 from sensor -> (B, T, D)."""
        given = {name: torch.cat(compared_dates(values_BTD), -1) for name, values_BTD in pooled.items()}
        first = next(iter(given.values()))
        parts = [given[name] if name in given else first.new_zeros(len(first), size) for name, size in self.sizes.items()]
        return F.linear(torch.cat(parts, -1), self.linear.weight.float(), self.linear.bias.float())


def compared_dates(values_BTD: Any) -> list[Any]:
    """Return what probes see of (B, T, D), a tensor or array: of two dates both and their absolute difference, else each date."""
    dates = [values_BTD[:, number] for number in range(values_BTD.shape[1])]
    return [*dates, abs(dates[1] - dates[0])] if len(dates) == 2 else dates


class Tuned(nn.Module):
    """Batches in physical units to outputs; pixels go through the encoder's own checks and normalisation."""

    def __init__(self, encoder: Encoder, head: PooledHead | DenseHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return (B, K), or (B, K, Y, X) from a dense head, float32, and the experts' balance loss."""
        inputs: dict[str, Any] = {}
        balance = torch.zeros(())
        for name, tiles in batch.tiles.items():
            features, is_valid = self.encoder.examined(tiles, name, batch.lonlat, generator)
            shape, balance = tiles.is_present.shape, balance + features.balance
            if isinstance(self.head, DenseHead):
                inputs[name] = [stage.unflatten(0, shape) for stage in features.maps]
            else:
                inputs[name] = self.encoder.pool(features, is_valid).unflatten(0, shape)
        return self.head(inputs).float(), balance

    def parameter_groups(self, rate: float, layer_decay: float) -> list[dict[str, Any]]:
        """Return what optimisers take: the head at `rate`, each of the encoder's layers at `layer_decay` of the one above it.

        Clark et al. 2020, arXiv 2003.10555. Stems and positions are below the first block.
        """
        depth = len(self.encoder.backbone.blocks)
        by_layer: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            by_layer.setdefault(self._layer(name, depth), []).append(parameter)
        return [{"params": found, "lr": rate * layer_decay ** (depth + 1 - layer)} for layer, found in sorted(by_layer.items())]

    def _layer(self, name: str, depth: int) -> int:
        """Return 0 for what is below the blocks, 1 to `depth` for them, one more for the head."""
        parts = name.split(".")
        if parts[0] == "head":
            return depth + 1
        if parts[1:3] == ["backbone", "blocks"]:
            return int(parts[3]) + 1
        if parts[1:3] == ["backbone", "merges"]:
            depths = self.encoder.config.backbone.depths  # type: ignore[union-attr]
            return sum(depths[: int(parts[3]) + 1]) + 1
        return depth if parts[1:3] == ["backbone", "norm"] else 0
