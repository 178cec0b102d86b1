"""Quality layers: which of their classes or bits hide the ground, and which say that there is no measurement.

The classes of each product are data in its sensor's YAML; this file only tests numbers against them.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict


class MaskClass(BaseModel):
    """Pixels whose number, or whose bits `first` to `last` of it counted from 0, is one of `values`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    values: tuple[int, ...] = (1,)
    bits: tuple[int, int] | None = None
    layer: int = 1
    """Band of the quality file, counted from 1."""

    def covers(self, stored: np.ndarray) -> np.ndarray:
        """Return (y, x) bool of a quality file's integers (layer, y, x)."""
        codes = stored[self.layer - 1].astype(np.int64)
        if self.bits is not None:
            first, last = self.bits
            codes = (codes >> first) & ((1 << (last - first + 1)) - 1)
        return np.isin(codes, self.values)


class Mask(BaseModel):
    """One quality layer. `endings` name its file or asset; `cloud` hides the ground (shadow too), `gap` is no measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endings: tuple[str, ...]
    cloud: tuple[MaskClass, ...] = ()
    gap: tuple[MaskClass, ...] = ()

    @property
    def num_layers(self) -> int:
        return max((kind.layer for kind in (*self.cloud, *self.gap)), default=1)


# A mask of the user's own beside a file, <name>_cloud.tif: whatever is not 0 is cloud or shadow.
ANY_CLOUD = Mask(endings=("cloud",), cloud=(MaskClass(name="cloud", values=tuple(range(1, 256))),))


def covered(classes: Sequence[MaskClass], stored: np.ndarray) -> np.ndarray:
    """Return (y, x) bool where any of `classes` covers; `stored` (layer, y, x)."""
    found = np.zeros(stored.shape[1:], bool)
    for kind in classes:
        found |= kind.covers(stored)
    return found
