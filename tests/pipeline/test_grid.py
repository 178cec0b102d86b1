from collections import Counter

import numpy as np
from odc.geo.geom import box

from pipeline.grid import Grid, ShardCell, Site, split_of, zone_crs, zone_number


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
    counts = Counter(split_of(ShardCell("32N", 400 + i, 800 + j)) for i in range(4) for j in range(4))
    assert counts == {"train": 10, "val": 2, "test": 4}
    assert split_of(ShardCell("32N", 250, 2066)) == split_of(ShardCell("32N", 250, 2066))
    patterns = {tuple(split_of(ShardCell("32N", c + i, i)) for i in range(4)) for c in range(0, 40, 4)}
    assert len(patterns) > 3


def test_southern_zone() -> None:
    assert zone_crs("56S") == "EPSG:32756"
    assert {c.zone for c in Grid().cells_over(box(151.0, -33.9, 151.1, -33.8, "EPSG:4326"))} == {"56S"}
    assert np.array_equal(zone_number(np.array([-180.0, 0.0, 179.9])), [1, 31, 60])
