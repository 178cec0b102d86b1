"""The fixed tiling grid: which square of ground is which site, which sites make a shard, and which split a site is in.

Sites are squares of a UTM zone counted from its origin, so any sensor and date of the same ground has the same site.
Splits go by blocks of shards, with a gap of unused sites around val and test where one is asked for. Knows geometry
only; reads nothing.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, Geometry, box
from pyproj import Transformer

from pipeline.errors import InputError

# Within each square of 4 x 4 neighbouring blocks: how many go to train, val, test.
SPLIT_OF_16 = ("train",) * 10 + ("val",) * 2 + ("test",) * 4
GAP = "gap"
EQUATOR_NORTHING_M = {"N": 0.0, "S": 10_000_000.0}


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
    """`site_size_m`: side of a site in metres; `shard_sites`: sites along one side of a shard.

    `block_shards`: shards along one side of a block, the unit of splitting. `gap_sites`: so many sites deep, those of val
    and test that border on another split are in none ('gap').
    """

    site_size_m: float = 640.0
    shard_sites: int = 4
    block_shards: int = 1
    gap_sites: int = 0

    def __post_init__(self) -> None:
        if self.site_size_m <= 0 or self.shard_sites < 1 or self.block_shards < 1:
            raise InputError(f"grid needs a positive site size, shard size and block size, found {self}")
        if not 0 <= 2 * self.gap_sites < self.shard_sites * self.block_shards:
            raise InputError(
                f"a gap of {self.gap_sites} sites leaves nothing of a block; use larger blocks or a smaller gap: {self}"
            )

    @property
    def split_distance_m(self) -> float:
        """Least distance on the ground between sites of different splits (but for the map's scale error, under 0.1 %)."""
        return self.gap_sites * self.site_size_m

    def split_of(self, site: Site) -> str:
        """Return 'train', 'val', 'test' or 'gap' for a site: fixed for ever."""
        split = self._block_split(site.zone, site.column, site.row)
        if split == "train" or not self.gap_sites:
            return split
        near = (-self.gap_sites, 0, self.gap_sites)  # enough, as a block is wider than the gap
        around = {self._block_split(site.zone, site.column + i, site.row + j) for i in near for j in near}
        return GAP if around != {split} or self._is_near_other_zone(site) else split

    def _block_split(self, zone: str, column: int, row: int) -> str:
        """Return the split of the block that holds a site: balanced within every 4 x 4 blocks."""
        side = self.shard_sites * self.block_shards
        column, row = column // side, row // side
        key = f"{zone}/{column // 4}/{row // 4}".encode()
        order = np.random.default_rng(list(hashlib.sha256(key).digest()[:8])).permutation(16)
        return SPLIT_OF_16[order[(column % 4) * 4 + row % 4]]

    def _is_near_other_zone(self, site: Site) -> bool:
        """Return whether a site of another UTM zone or hemisphere, whose splits are other, may be within the gap."""
        size, reach = self.site_size_m, self.gap_sites + 2  # a neighbour may be turned and stick out over the border
        x = (site.column + 0.5 + np.array([-reach, reach])) * size
        y = np.full(2, (site.row + 0.5) * size)
        lon, _ = Transformer.from_crs(zone_crs(site.zone), "EPSG:4326", always_xy=True).transform(x, y)
        return bool((zone_number(lon) != int(site.zone[:-1])).any() or abs(y[0] - EQUATOR_NORTHING_M[site.zone[-1]]) < reach * size)

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

        A site belongs to the zone and hemisphere in which its centre lies, so no ground is in two of them.
        """
        n = self.shard_sites
        offsets = [(i, j) for i in range(n) for j in range(n)]
        sites = [Site(cell.zone, cell.column * n + j, cell.row * n + n - 1 - i) for i, j in offsets]
        x = np.array([(site.column + 0.5) * self.site_size_m for site in sites])
        y = np.array([(site.row + 0.5) * self.site_size_m for site in sites])
        lon, _ = Transformer.from_crs(zone_crs(cell.zone), "EPSG:4326", always_xy=True).transform(x, y)
        from_equator = (y - EQUATOR_NORTHING_M[cell.zone[-1]]) * (1 if cell.zone[-1] == "N" else -1)
        is_own = (zone_number(lon) == int(cell.zone[:-1])) & (from_equator > 0)
        return [(s, i, j) for s, (i, j), own in zip(sites, offsets, is_own) if own]

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
        columns = np.arange(math.floor(bounds.left / size), math.ceil(bounds.right / size))
        rows = np.arange(math.floor(bounds.bottom / size), math.ceil(bounds.top / size))
        column, row = (a.ravel() for a in np.meshgrid(columns, rows))
        shapely.prepare(local.geom)
        is_touched = shapely.intersects(local.geom, shapely.box(column * size, row * size, (column + 1) * size, (row + 1) * size))
        return {ShardCell(zone, int(c), int(r)) for c, r in zip(column[is_touched], row[is_touched])}


def zone_crs(zone: str) -> str:
    """Return the CRS of a UTM zone such as '32N' as 'EPSG:32632'."""
    return f"EPSG:{(32600 if zone.endswith('N') else 32700) + int(zone[:-1])}"


def zone_number(lon_deg: np.ndarray | float) -> np.ndarray:
    """Return the UTM zone number of longitudes (without the exceptions around Norway and Svalbard)."""
    return np.clip((np.floor((np.asarray(lon_deg) + 180) / 6) + 1).astype(int), 1, 60)
