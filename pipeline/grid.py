"""The fixed tiling grid: which square of ground is which site, and which sites make a shard.

Sites are squares of a UTM zone counted from its origin, so any sensor and date of the same ground has the same site.
Knows geometry only; reads nothing.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from pyproj import Transformer

from pipeline.errors import InputError

# Within each square of 4 x 4 neighbouring shards: how many go to train, val, test.
SPLIT_OF_16 = ("train",) * 10 + ("val",) * 2 + ("test",) * 4


@dataclass(frozen=True)
class Site:
    """One square cell: UTM zone such as '32N', column and row from the zone's origin."""

    zone: str
    column: int
    row: int

    @property
    def id(self) -> str:
        return f"{self.zone}_{self.column}_{self.row}"


@dataclass(frozen=True)
class ShardCell:
    """A square block of sites: the spatial unit of reading, writing and splitting."""

    zone: str
    column: int
    row: int

    @property
    def id(self) -> str:
        return f"{self.zone}_{self.column}_{self.row}"


@dataclass(frozen=True)
class Grid:
    """`site_size_m`: side of a site in metres; `shard_sites`: sites along one side of a shard."""

    site_size_m: float = 640.0
    shard_sites: int = 4

    def __post_init__(self) -> None:
        if self.site_size_m <= 0 or self.shard_sites < 1:
            raise InputError(f"grid needs a positive site size and shard size, found {self.site_size_m} m and {self.shard_sites}")

    @property
    def shard_size_m(self) -> float:
        return self.site_size_m * self.shard_sites

    def shard_bounds(self, cell: ShardCell) -> BoundingBox:
        """Return the shard's outline in its zone's CRS, metres."""
        left, bottom = cell.column * self.shard_size_m, cell.row * self.shard_size_m
        return BoundingBox(left, bottom, left + self.shard_size_m, bottom + self.shard_size_m, zone_crs(cell.zone))

    def site_bounds(self, site: Site) -> BoundingBox:
        left, bottom = site.column * self.site_size_m, site.row * self.site_size_m
        return BoundingBox(left, bottom, left + self.site_size_m, bottom + self.site_size_m, zone_crs(site.zone))

    def geobox(self, cell: ShardCell, gsd_m: float) -> GeoBox:
        """Return the shard's pixel grid at `gsd_m`; pixel (0, 0) is the north-west corner."""
        return GeoBox.from_bbox(self.shard_bounds(cell), resolution=gsd_m, tight=True)

    def sites(self, cell: ShardCell) -> list[tuple[Site, int, int]]:
        """Return the shard's sites with their (row, column) counted from its north-west corner.

        A site belongs to the zone in which its centre lies, so no ground is in two zones.
        """
        n = self.shard_sites
        offsets = [(i, j) for i in range(n) for j in range(n)]
        sites = [Site(cell.zone, cell.column * n + j, cell.row * n + n - 1 - i) for i, j in offsets]
        x = np.array([(site.column + 0.5) * self.site_size_m for site in sites])
        y = np.array([(site.row + 0.5) * self.site_size_m for site in sites])
        lon, _ = Transformer.from_crs(zone_crs(cell.zone), "EPSG:4326", always_xy=True).transform(x, y)
        return [(s, i, j) for s, (i, j), own in zip(sites, offsets, zone_number(lon) == int(cell.zone[:-1])) if own]

    def cells_over(self, footprint: Geometry) -> set[ShardCell]:
        """Return the shards that `footprint` (any CRS) may touch."""
        lonlat = footprint.to_crs("EPSG:4326", resolution=0.1 if footprint.crs is not None and footprint.crs.geographic else 5000)
        bounds = lonlat.boundingbox
        cells = set()
        for number in range(int(zone_number(bounds.left)), int(zone_number(bounds.right)) + 1):
            for hemisphere, present in (("N", bounds.top >= 0), ("S", bounds.bottom < 0)):
                if present:
                    cells |= self._cells_in_zone(lonlat, f"{number:02d}{hemisphere}")
        return cells

    def _cells_in_zone(self, lonlat: Geometry, zone: str) -> set[ShardCell]:
        west = (int(zone[:-1]) - 31) * 6
        south, north = (0, 84) if zone.endswith("N") else (-80, 0)
        part = lonlat & box(west, south, west + 6, north, "EPSG:4326")
        if part.is_empty:
            return set()
        local = part.to_crs(zone_crs(zone), resolution=0.1)
        bounds, size = local.boundingbox, self.shard_size_m
        columns = range(math.floor(bounds.left / size), math.ceil(bounds.right / size))
        rows = range(math.floor(bounds.bottom / size), math.ceil(bounds.top / size))
        cells = (ShardCell(zone, column, row) for column in columns for row in rows)
        return {cell for cell in cells if self.shard_bounds(cell).polygon.intersects(local)}


def split_of(cell: ShardCell) -> str:
    """Return 'train', 'val' or 'test' for a shard: fixed for ever, and balanced within every 4 x 4 shards."""
    key = f"{cell.zone}/{cell.column // 4}/{cell.row // 4}".encode()
    order = np.random.default_rng(list(hashlib.sha256(key).digest()[:8])).permutation(16)
    return SPLIT_OF_16[order[(cell.column % 4) * 4 + cell.row % 4]]


def zone_crs(zone: str) -> str:
    """Return the CRS of a UTM zone such as '32N' as 'EPSG:32632'."""
    return f"EPSG:{(32600 if zone.endswith('N') else 32700) + int(zone[:-1])}"


def zone_number(lon_deg: np.ndarray | float) -> np.ndarray:
    """Return the UTM zone number of longitudes (without the exceptions around Norway and Svalbard)."""
    return np.clip((np.floor((np.asarray(lon_deg) + 180) / 6) + 1).astype(int), 1, 60)
