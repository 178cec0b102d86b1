"""An encoder of one sensor as a function of plain tensors: what is written as a graph for other runtimes.

This file decides what such a graph is given and returns. Pixels come in physical units; the sensor's statistics are inside. Side
and number of pixels are fixed, the number of tiles is not.
Legend: B tiles, C channel, Y X pixels, y x cells of the last map, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.errors import InputError
from models.moe import MixtureOfExperts

OUTPUTS = ("pooled", "grid", "is_valid_cell")


class SensorGraph(nn.Module):
    """One date of one sensor: pixels (B, C, Y, X) float32 in the sensor's unit and is_valid (B, Y, X) bool to

    pooled (B, D) and grid (B, y, x, D), float32, and is_valid_cell (B, y, x) bool, as `Embedding` has them. An encoder that
    is told time and place also takes time_days (B,) and lonlat_deg (B, 2), float64, NaN where unknown. Unlike
    `Encoder.encode` a graph cannot refuse values in a wrong unit.
    """

    def __init__(self, encoder: Encoder, sensor: str, side_px: int) -> None:
        super().__init__()
        spec = encoder.spec(sensor)
        if side_px % spec.patch_px(encoder.config.token_size_m):
            raise InputError(
                f"a graph of sensor '{sensor}' has tiles of {side_px} pixels, expected a multiple of "
                f"{spec.patch_px(encoder.config.token_size_m)}, the side of a token"
            )
        self.encoder, self.spec, self.side_px = encoder.eval(), spec, side_px
        positions = encoder.config.positions
        self.has_metadata = encoder.positions is not None and bool(
            positions.has_time or positions.has_location or positions.time_width
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("pixels", "is_valid", *(("time_days", "lonlat_deg") if self.has_metadata else ()))

    def forward(
        self, pixels: Tensor, is_valid: Tensor, time_days: Tensor | None = None, lonlat_deg: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return `OUTPUTS`."""
        encoder, spec = self.encoder, self.spec
        # A sum over a tile's heights in float32 hangs on the order of adding, which other runtimes choose themselves.
        level = spec.level(pixels.double(), is_valid).float()
        normalised = spec.normalise(pixels, is_valid, level)
        days = None if time_days is None else time_days[:, None]
        features = encoder.features(normalised, is_valid, spec.name, time_days=days, lonlat_deg=lonlat_deg)
        is_valid_cell = encoder.cells(is_valid, spec.name)
        return encoder.pool(features, is_valid_cell), features.maps[-1].float(), is_valid_cell

    def example(self, batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return inputs about the training statistics, a tenth of the pixels of each tile but the first invalid."""
        shape = (batch, self.spec.num_bands, self.side_px, self.side_px)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.spec.mean, self.spec.std))
        pixels = torch.randn(shape, generator=generator) * std + mean
        is_valid = torch.rand(batch, self.side_px, self.side_px, generator=generator) < 0.9
        is_valid[0] = True
        metadata = (torch.full((batch,), 18_000.5).double(), torch.full((batch, 2), 10.0).double()) if self.has_metadata else ()
        return (pixels, is_valid, *metadata)

    def exported(self) -> torch.export.ExportedProgram:
        """Return the graph as torch.export has it, for any number of tiles."""
        example = self.example(2, torch.Generator().manual_seed(0))
        # Outside the trace, so that what depends on the shape alone is a constant.
        with torch.no_grad(), fixed_routing(self):
            self(*example)
            batch = torch.export.Dim("batch", min=1, max=65_536)
            return torch.export.export(self, example, dynamic_shapes=tuple({0: batch} for _ in example), strict=False)


@contextmanager
def fixed_routing(module: nn.Module) -> Iterator[None]:
    """Have experts see every token inside: how many tokens each is sent depends on values, which no graph has shapes for."""
    experts = [part for part in module.modules() if isinstance(part, MixtureOfExperts)]
    try:
        for part in experts:
            part.sees_all = True
        yield
    finally:
        for part in experts:
            part.sees_all = False
