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
from pipeline.registration import Match, Registration

PIECE_ERROR_PX = 0.02
MIN_PIECE_PX = 16
GRAIN, STEP_M = 2.0**-24, 2.0**-4
"""Shifts (metres) and slopes are whole multiples of the one. On pixel grids whose numbers are multiples of the other, all
sums that make a coordinate of UTM (under 2**24 m) then fit a double: nothing is rounded, in whatever order it is summed."""


@dataclass(frozen=True)
class Alignment:
    """The displacement of a scene against the truth, on the grid it was measured on; no field: left where it was stated."""

    confidence: float
    reason: str
    field: Field | None = None
    grid: GeoBox | None = None
    """The north-up grid whose pixels `field` is in."""
    unit_m: float | None = None
    """Pieces never cross multiples of this from a grid's corner: a site's pixels do not depend on what is read with it."""

    def stated(self, x: np.ndarray, y: np.ndarray, crs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates (N,), (N,) that the scene states for what truly lies at (x, y) of `crs`."""
        if self.field is None or self.grid is None:
            return x, y
        there, back = self._transformers(str(crs))
        column, row = _apply(~self.grid.transform, *(there.transform(x, y) if there else (x, y)))
        down, right = self.field.at(np.stack([row, column], axis=1)).T
        moved = _apply(self.grid.transform, column + right, row + down)
        return back.transform(*moved) if back else moved

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
        (stated_x,), (stated_y,) = self.stated(np.array([x]), np.array([y]), crs)
        return Registration(round(float(x - stated_x), 3), round(float(y - stated_y), 3), self.confidence, self.reason)

    def pieces(self, geobox: GeoBox) -> Iterator[tuple[tuple[slice, slice], Affine]]:
        """Yield (window, transform): for each piece of `geobox`, where in stated coordinates its pixels must be read.

        Pieces are a site wide, for positions depend on where a line of a piece begins and ends. They are as high as
        `geobox` where the sums that say where a line lies are exact, as these do not depend on the line they begin with.
        """
        rows, columns = geobox.shape
        leading = self._leading(geobox)
        width = columns if self.unit_m is None else round(self.unit_m / geobox.resolution.x)
        height = rows if self.unit_m is None or (leading is not None and _adds_up(geobox)) else width
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                size = min(height, rows - top), min(width, columns - left)
                if leading is None:
                    yield from self._cut(geobox, top, left, *size)
                else:
                    place = leading @ Affine.translation(left, top)
                    yield (slice(top, top + size[0]), slice(left, left + size[1])), place

    def _leading(self, geobox: GeoBox) -> Affine | None:
        """Return what leads from pixels of `geobox` to stated coordinates; None where no one affine does everywhere."""
        here = geobox.transform
        if self.field is None or self.grid is None:
            return here
        if self.field.kind == "local" or self.grid.crs != geobox.crs:
            return None
        corner = np.rint([self.grid.transform.c, self.grid.transform.f])
        x, y = corner[0] + np.array([0, 1e5, 0]), corner[1] + np.array([0, 0, 1e5])
        moved = np.array(self.stated(x, y, geobox.crs)) - (x, y)
        shift, slopes = (_grained(v) for v in (moved[:, 0], (moved[:, 1:] - moved[:, :1]) / 1e5))
        offset = np.array([here.c, here.f]) + shift + slopes @ (np.array([here.c, here.f]) - corner)
        steps = (np.eye(2) + slopes) @ np.array([[here.a, here.b], [here.d, here.e]])
        return Affine(*steps[0], offset[0], *steps[1], offset[1])

    def _cut(self, geobox: GeoBox, top: int, left: int, rows: int, columns: int) -> Iterator[tuple[tuple[slice, slice], Affine]]:
        offsets = np.array([(0.5, 0.5), (0.5, 0), (0.5, 1), (0, 0.5), (1, 0.5), (0, 0), (0, 1), (1, 0), (1, 1)])
        row, column = (top + offsets[:, 0] * rows, left + offsets[:, 1] * columns)
        x, y = self.stated(*_apply(geobox.transform, column, row), geobox.crs)
        along_x, along_y = ((np.array([v[2] - v[1] for v in (x, y)]) / columns), (np.array([v[4] - v[3] for v in (x, y)]) / rows))
        linear = Affine(along_x[0], along_y[0], 0, along_x[1], along_y[1], 0)
        offset_x, offset_y = _apply(linear, np.array(columns / 2), np.array(rows / 2))
        piece = Affine(along_x[0], along_y[0], x[0] - offset_x, along_x[1], along_y[1], y[0] - offset_y)
        made_x, made_y = _apply(piece, column - left, row - top)
        error_px = np.hypot(made_x - x, made_y - y).max() / abs(geobox.resolution.x)
        if error_px <= PIECE_ERROR_PX or max(rows, columns) <= MIN_PIECE_PX:
            yield (slice(top, top + rows), slice(left, left + columns)), piece
            return
        for first, size_y in _halves(rows):
            for second, size_x in _halves(columns):
                yield from self._cut(geobox, top + first, left + second, size_y, size_x)

    def to_dict(self) -> dict[str, Any]:
        """Return what a report keeps; `alignment_from_dict` makes the same alignment of it."""
        record: dict[str, Any] = {"confidence": self.confidence, "reason": self.reason}
        if self.field is not None and self.grid is not None:
            record["grid"] = {"crs": str(self.grid.crs), "transform": list(self.grid.transform)[:6], "shape": list(self.grid.shape)}
            record["field"] = {name: np.asarray(value).tolist() for name, value in vars(self.field).items()}
        return record


def alignment_from_dict(record: dict[str, Any]) -> Alignment:
    """Return the alignment that `to_dict` wrote down."""
    if "field" not in record:
        return Alignment(record["confidence"], record["reason"])
    stated, saved = record["grid"], {k: np.array(v) for k, v in record["field"].items()}
    knots, residuals = (saved[name].reshape(-1, 2) for name in ("knots", "residuals"))
    field = Field(saved["origin"], saved["coefficients"], knots, residuals, float(saved["reach_px"]))
    return Alignment(
        record["confidence"], record["reason"], field, GeoBox(stated["shape"], Affine(*stated["transform"]), stated["crs"])
    )


UNMOVED = Alignment(1.0, "reference")


def aligned(match: Match, grid: GeoBox, against: str) -> Alignment:
    """Return what `match`, in px of `grid`, says of the scene that was compared with scene `against`."""
    return Alignment(match.confidence, f"against {against}: {match.reason}", match.field, grid if match.field else None)


def unaligned(reason: str, confidence: float = 0.0) -> Alignment:
    return Alignment(confidence, reason)


def _apply(transform: Affine, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def _grained(values: np.ndarray) -> np.ndarray:
    return np.rint(values / GRAIN) * GRAIN


def _adds_up(geobox: GeoBox) -> bool:
    numbers = np.array([geobox.resolution.x / 2, geobox.transform.c, geobox.transform.f]) / STEP_M
    return bool((numbers == np.rint(numbers)).all())


def _halves(size: int) -> list[tuple[int, int]]:
    middle = size // 2
    return [(0, middle), (middle, size - middle)] if middle else [(0, size)]
