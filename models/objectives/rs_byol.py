"""RS-BYOL: optical and radar of a place predict each other, a few bands at a time (Jain et al. 2022, arXiv 2205.02049).

The paper's code is not public. Known: one online network for both sensors, whose views of a place are single bands (drawn
anew) or three. Not known, and decided here: three bands are drawn as the one is; a sensor with fewer shows its own over and
over; a view's bands are the same for all samples of a rank's micro-batch.
"""

from dataclasses import dataclass, replace

import torch

from models.batch import Batch, Tiles
from models.encoder import EncoderConfig
from models.errors import InputError
from models.objectives.byol import Byol, ByolConfig
from models.objectives.two_views import Kind, View, two_views
from models.stems.shared import SharedStemConfig


@dataclass(frozen=True)
class RsByolConfig(ByolConfig):
    """Published: BYOL's; the views are sensors. excluded: bands that are never drawn (those of 60 m)."""

    views: Kind = "sensors"
    excluded: tuple[str, ...] = ("B01", "B09", "B10")


class RsByol(Byol):
    """BYOL between sensors over a stem that they share."""

    def __init__(self, encoder: EncoderConfig, config: RsByolConfig, generator: torch.Generator | None = None) -> None:
        if not isinstance(encoder.stem, SharedStemConfig):
            raise InputError(f"rs_byol has a '{encoder.stem.kind}' stem, expected a 'shared' one")
        super().__init__(encoder, config, generator)
        self.num_channels, self.excluded = encoder.stem.num_channels, config.excluded

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[View, View]:
        first, second = two_views(batch, self.config.views, self.encoder)
        return self._thinned(first, generator), self._thinned(second, generator)

    def _thinned(self, view: View, generator: torch.Generator) -> View:
        name, tiles = view
        return name, draw_bands(tiles, self.num_channels, self.excluded, generator)


def draw_bands(tiles: Tiles, count: int, excluded: tuple[str, ...], generator: torch.Generator) -> Tiles:
    """Return the tiles with `count` of their bands drawn without replacement; bands over and over where there are fewer."""
    allowed = [i for i, band in enumerate(tiles.bands) if band not in excluded]
    drawn = torch.randperm(len(allowed), generator=generator).tolist()
    if len(drawn) < count:
        drawn = [i % len(allowed) for i in range(count)]
    chosen = [allowed[i] for i in drawn[:count]]
    return replace(tiles, pixels=tiles.pixels[:, :, chosen], bands=tuple(tiles.bands[i] for i in chosen))
