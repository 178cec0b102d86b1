"""Where one scene truly lies: its displacement in metres, and how pixels are read so that it is undone in one resampling.

A displacement is smooth, so over a small enough piece of a pixel grid it is an affine map, and an affine map of the
grid is all that a warp needs. Pieces are cut until that holds to `PIECE_ERROR_PX`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.transform import Affine

from pipeline.displacement import Field
from pipeline.registration import Registration

PIECE_ERROR_PX = 0.02
MIN_PIECE_PX = 16


@dataclass(frozen=True)
class Alignment:
    """The displacement of a scene against the truth, on the grid it was measured on; no field: left where it was stated."""

    confidence: float
    reason: str
    field: Field | None = None
    grid: GeoBox | None = None
    """The north-up grid whose pixels `field` is in."""

    def stated(self, x: np.ndarray, y: np.ndarray, crs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates that the scene states for what truly lies at (x, y) of `crs`, metres."""
        if self.field is None or self.grid is None:
            return x, y
        there, back = self._transformers(str(crs))
        grid_x, grid_y = there.transform(x, y) if there else (x, y)
        to_pixel = ~self.grid.transform
        column, row = to_pixel * (np.asarray(grid_x, float), np.asarray(grid_y, float))
        shift = self.field.at(np.stack([np.ravel(row), np.ravel(column)], axis=1)).reshape(*np.shape(row), 2)
        moved_x, moved_y = self.grid.transform * (column + shift[..., 1], row + shift[..., 0])
        return back.transform(moved_x, moved_y) if back else (moved_x, moved_y)

    def _transformers(self, crs: str) -> tuple[Transformer | None, Transformer | None]:
        if crs not in self._known:
            assert self.grid is not None
            same, own = str(self.grid.crs) == crs, str(self.grid.crs)
            pair = (None, None) if same else tuple(Transformer.from_crs(a, b, always_xy=True) for a, b in ((crs, own), (own, crs)))
            self._known[crs] = pair
        return self._known[crs]

    @cached_property
    def _known(self) -> dict[str, Any]:
        return {}

    def at(self, x: float, y: float, crs: Any) -> Registration:
        """Return the record of a tile whose centre is (x, y): what was added to the stated coordinates there."""
        stated_x, stated_y = self.stated(np.float64(x), np.float64(y), crs)
        return Registration(round(float(x - stated_x), 3), round(float(y - stated_y), 3), self.confidence, self.reason)

    def pieces(self, geobox: GeoBox) -> Iterator[tuple[tuple[slice, slice], Affine]]:
        """Yield (window, transform): for each piece of `geobox`, where in stated coordinates its pixels must be read."""
        if self.field is None:
            yield (slice(0, geobox.shape.y), slice(0, geobox.shape.x)), geobox.transform
        else:
            yield from self._cut(geobox, 0, 0, *geobox.shape)

    def _cut(self, geobox: GeoBox, top: int, left: int, rows: int, columns: int) -> Iterator[tuple[tuple[slice, slice], Affine]]:
        offsets = np.array([(0.5, 0.5), (0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)])
        row, column = (top + offsets[:, 0] * rows, left + offsets[:, 1] * columns)
        x, y = self.stated(*(geobox.transform * (column, row)), geobox.crs)
        along_x, along_y = ((np.array([v[2] - v[1] for v in (x, y)]) / columns), (np.array([v[4] - v[3] for v in (x, y)]) / rows))
        linear = Affine(along_x[0], along_y[0], 0, along_x[1], along_y[1], 0)
        offset_x, offset_y = linear * (columns / 2, rows / 2)
        piece = Affine.translation(x[0] - offset_x, y[0] - offset_y) @ linear
        made_x, made_y = piece * (column - left, row - top)
        error_px = np.hypot(made_x - x, made_y - y).max() / abs(geobox.resolution.x)
        if error_px <= PIECE_ERROR_PX or max(rows, columns) <= MIN_PIECE_PX:
            yield (slice(top, top + rows), slice(left, left + columns)), piece
            return
        for first, size_y in _halves(rows):
            for second, size_x in _halves(columns):
                yield from self._cut(geobox, top + first, left + second, size_y, size_x)

    def to_dict(self) -> dict[str, Any]:
        """Return what a report keeps: numbers in px of the grid, rounded to a thousandth."""
        record: dict[str, Any] = {"confidence": self.confidence, "reason": self.reason}
        if self.field is not None and self.grid is not None:
            record["grid"] = {"crs": str(self.grid.crs), "transform": list(self.grid.transform)[:6], "shape": list(self.grid.shape)}
            record["field"] = {name: np.round(value, 6).tolist() for name, value in vars(self.field).items()}
        return record


UNMOVED = Alignment(1.0, "reference")


def unaligned(reason: str, confidence: float = 0.0) -> Alignment:
    return Alignment(confidence, reason)


def _halves(size: int) -> list[tuple[int, int]]:
    middle = size // 2
    return [(0, middle), (middle, size - middle)] if middle else [(0, size)]
