"""Where a planet lies on Earth, and where the pixels of a scene truly lie on the planet."""

from dataclasses import dataclass

import numpy as np
from pyproj import CRS, Transformer
from rasterio.transform import Affine, from_origin

from pipeline.simulation.config import SITE_M, SimulateConfig


@dataclass(frozen=True)
class Frame:
    """The planet's place on Earth: UTM zone and north-west corner."""

    crs: CRS
    west_m: float
    north_m: float
    size_m: float

    @classmethod
    def at(cls, config: SimulateConfig) -> "Frame":
        crs = CRS.from_epsg(32601 + int((config.lon + 180) // 6))
        x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(config.lon, config.lat)
        west, south = (round((c - config.size_m / 2) / SITE_M) * SITE_M for c in (x, y))
        return cls(crs, west, south + config.size_m, config.size_m)

    def transform(self, gsd_m: float) -> Affine:
        return from_origin(self.west_m, self.north_m, gsd_m, gsd_m)


@dataclass(frozen=True)
class Grid:
    """The stated pixel grid of one scene and the polynomials that say where its pixels truly lie on the planet.

    Map projections are smooth over a planet: degree 4 in row and column is exact to millimetres.
    """

    crs: CRS
    transform: Affine
    shape: tuple[int, int]
    to_planet_m: tuple[np.ndarray, np.ndarray]

    @classmethod
    def over(
        cls,
        frame: Frame,
        crs: CRS,
        gsd_m: float,
        extent: tuple[float, float, float, float],
        shift_m: tuple[float, float],
    ) -> "Grid":
        """Cover `extent` (west, south, east, north as shares of the planet) with ground pixels of about `gsd_m`."""
        west, south, east, north = extent
        forward = Transformer.from_crs(frame.crs, crs, always_xy=True)
        edge = np.linspace(0, 1, 21)
        share_x, share_y = (a.ravel() for a in np.meshgrid(west + (east - west) * edge, south + (north - south) * edge))
        base_x, base_y = frame.west_m + share_x * frame.size_m, frame.north_m - (1 - share_y) * frame.size_m
        x, y = forward.transform(base_x, base_y)
        middle = base_x.mean(), base_y.mean()
        step = [
            np.array(forward.transform(middle[0] + dx, middle[1] + dy)) for dx, dy in ((-500, 0), (500, 0), (0, -500), (0, 500))
        ]
        size_x, size_y = (gsd_m * np.abs(step[2 * k + 1] - step[2 * k])[k] / 1000 for k in (0, 1))
        if crs.is_projected and crs.utm_zone:
            size_x = size_y = gsd_m
        left, top = np.floor(x.min() / size_x + 1e-6) * size_x, np.ceil(y.max() / size_y - 1e-6) * size_y
        shape = int(np.ceil((top - y.min()) / size_y - 1e-6)), int(np.ceil((x.max() - left) / size_x - 1e-6))
        transform = Affine(size_x, 0, left, 0, -size_y, top)
        knots = np.cos(np.linspace(0, np.pi, 9))
        row, column = (a.ravel() for a in np.meshgrid(knots, knots, indexing="ij"))
        stated = left + (column + 1) / 2 * shape[1] * size_x, top - (row + 1) / 2 * shape[0] * size_y
        true_x, true_y = forward.transform(*stated, direction="INVERSE")
        design = np.polynomial.polynomial.polyvander2d(row, column, (4, 4))
        to_planet = tuple(
            np.linalg.lstsq(design, metres, rcond=None)[0].reshape(5, 5)
            for metres in (frame.north_m - (true_y + shift_m[1]), true_x + shift_m[0] - frame.west_m)
        )
        return cls(crs, transform, shape, to_planet)

    def planet_m(self, rows: slice) -> np.ndarray:
        """Return true metres south and east of the planet's north-west corner, (2, row, column), of pixel centres."""
        row = np.polynomial.polynomial.polyvander((np.arange(rows.start, rows.stop) + 0.5) * 2 / self.shape[0] - 1, 4)
        column = np.polynomial.polynomial.polyvander((np.arange(self.shape[1]) + 0.5) * 2 / self.shape[1] - 1, 4)
        return np.stack([row @ table @ column.T for table in self.to_planet_m])
