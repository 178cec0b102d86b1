from collections import Counter

import numpy as np
import pytest
from odc.geo.geom import box

from pipeline.errors import InputError
from pipeline.grid import GAP, Grid, ShardCell, Site, zone_crs, zone_number


def test_site_bounds_by_hand() -> None:
    bounds = Grid(640, 4).site_bounds(Site("32N", 1000, 8265))
    assert (bounds.left, bounds.bottom, bounds.right, bounds.top) == (640_000, 5_289_600, 640_640, 5_290_240)
    assert str(bounds.crs) == "EPSG:32632"


def test_sites_tile_their_shard_from_the_north_west() -> None:
    grid, cell = Grid(640, 4), ShardCell("32N", 250, 2066)
    sites = grid.sites(cell)
    assert len({site.id for site, _, _ in sites}) == 16
    shard = grid.shard_bounds(cell)
    for site, i, j in sites:
        bounds = grid.site_bounds(site)
        assert (bounds.left, bounds.top) == (shard.left + j * 640, shard.top - i * 640)


def test_ground_at_a_zone_border_has_one_zone() -> None:
    """12 E is the border of zones 32 and 33: shards of both cover it, no site is in both."""
    grid, ground = Grid(640, 4), box(11.98, 48.0, 12.02, 48.02, "EPSG:4326")
    cells = grid.cells_over(ground)
    assert {cell.zone for cell in cells} == {"32N", "33N"}
    centres = []
    for cell in cells:
        for site, _, _ in grid.sites(cell):
            centre = grid.site_bounds(site).polygon.centroid.to_crs("EPSG:4326").coords[0]
            assert zone_number(centre[0]) == int(site.zone[:-1])
            centres.append(centre)
    assert ground.within(sum_polygons(grid, cells))


def sum_polygons(grid: Grid, cells: set[ShardCell]):  # type: ignore[no-untyped-def]
    polygons = [grid.shard_bounds(cell).polygon.to_crs("EPSG:4326") for cell in cells]
    total = polygons[0]
    for polygon in polygons[1:]:
        total = total | polygon
    return total.buffer(1e-5)


def test_splits_are_balanced_and_fixed() -> None:
    grid = Grid(shard_sites=1)
    counts = Counter(grid.split_of(Site("32N", 400 + i, 800 + j)) for i in range(4) for j in range(4))
    assert counts == {"train": 10, "val": 2, "test": 4}
    patterns = {tuple(grid.split_of(Site("32N", c + i, i)) for i in range(4)) for c in range(0, 40, 4)}
    assert len(patterns) > 3
    worked = [grid.split_of(Site("32N", 1000 + i, 8264)) for i in range(6)]  # never to change: archives rely on it
    assert worked == WORKED_SPLITS
    assert [Grid(shard_sites=4, block_shards=2).split_of(Site("32N", 8 * (1000 + i) + 7, 8 * 8264)) for i in range(6)] == worked


WORKED_SPLITS = ["train", "train", "train", "train", "test", "train"]


@pytest.mark.parametrize("grid", [Grid(640, 4, block_shards=2, gap_sites=1), Grid(640, 2, 3, 2), Grid(1280, 4, 1, 1)])
def test_no_site_of_another_split_is_nearer_than_promised(grid: Grid) -> None:
    """All sites of 40 x 40 around a place in a zone: by brute force on their map coordinates."""
    sites = [
        Site("32N", int(500_000 / grid.site_size_m) + i, int(5_000_000 / grid.site_size_m) + j)
        for i in range(40)
        for j in range(40)
    ]
    splits = np.array([grid.split_of(site) for site in sites])
    assert set(splits) >= {"train", "test", GAP}
    corners = np.array([(site.column, site.row) for site in sites])
    least = np.inf
    for one in ("train", "val", "test"):
        for other in {"train", "val", "test"} - {one}:
            apart = np.abs(corners[splits == one][:, None] - corners[splits == other][None]) - 1
            least = min([least, *(np.maximum(apart, 0).max(axis=2).ravel() * grid.site_size_m)])
    assert least == grid.split_distance_m == grid.gap_sites * grid.site_size_m
    without = Grid(grid.site_size_m, grid.shard_sites, grid.block_shards)
    kept = [without.split_of(site) for site, split in zip(sites, splits) if split != GAP]
    assert kept == [split for split in splits if split != GAP]


@pytest.mark.parametrize(
    ("zones", "lat"), [(("32N", "33N"), 48.0), (("32N", "33N"), 1.0), (("56S", "57S"), -33.0), (("32S", "32N"), 0.0)]
)
def test_the_promise_holds_across_zones_and_the_equator(zones: tuple[str, str], lat: float) -> None:
    grid = Grid(640, 4, block_shards=1, gap_sites=1)
    lon = (int(zones[1][:-1]) - 31) * 6 if zones[0][:-1] != zones[1][:-1] else 9.1
    cells = grid.cells_over(box(lon - 0.06, lat - 0.06, lon + 0.06, lat + 0.06, "EPSG:4326"))
    by_zone = {zone: [s for cell in cells if cell.zone == zone for s, _, _ in grid.sites(cell)] for zone in zones}
    held = {
        zone: [(s, grid.split_of(s)) for s in sites if grid.split_of(s) not in ("train", GAP)] for zone, sites in by_zone.items()
    }
    other = {zones[0]: zones[1], zones[1]: zones[0]}
    checked = 0
    for zone, found in held.items():
        polygons = [grid.site_bounds(s).polygon.to_crs(zone_crs(zone), resolution=100).geom for s in by_zone[other[zone]]]
        splits = [grid.split_of(s) for s in by_zone[other[zone]]]
        for site, split in found:
            own = grid.site_bounds(site).polygon.geom
            gaps = [own.distance(p) for p, o in zip(polygons, splits) if o not in (split, GAP)]
            assert min(gaps, default=np.inf) >= 0.999 * grid.split_distance_m
            checked += len(gaps)
    assert checked > 100


def test_a_gap_needs_a_block_to_lie_in() -> None:
    with pytest.raises(InputError, match="a gap of 2 sites leaves nothing of a block"):
        Grid(640, 4, 1, 2)


def test_southern_zone() -> None:
    assert zone_crs("56S") == "EPSG:32756"
    assert {c.zone for c in Grid().cells_over(box(151.0, -33.9, 151.1, -33.8, "EPSG:4326"))} == {"56S"}
    assert np.array_equal(zone_number(np.array([-180.0, 0.0, 179.9])), [1, 31, 60])
