"""A known displacement, undone while reading a real file in one resampling."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.env import get_gdal_config
from rasterio.transform import from_origin
from scipy import ndimage

from pipeline.alignment import PIECE_ERROR_PX, UNMOVED, Alignment
from pipeline.displacement import Field, constant
from pipeline.raster import CACHE_BYTES, open_raster, read_on_grid

CRS = "EPSG:32633"
GRID = GeoBox((256, 256), from_origin(500_000, 5_000_000, 10, 10), CRS)


def aligned(field: Field) -> Alignment:
    return Alignment(1.0, "test", field, GRID)


def bump() -> Field:
    knots = np.stack(np.meshgrid(np.arange(16.0, 256, 32), np.arange(16.0, 256, 32), indexing="ij"), -1).reshape(-1, 2)
    height = np.exp(-((knots - 128) ** 2).sum(1) / (2 * 50**2))
    return Field(np.zeros(2), np.zeros((3, 2)), knots, np.stack([3 * height, -2 * height], 1), 40.0)


@pytest.fixture
def file(tmp_path: Path) -> str:
    pixels = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(256, 256)), 3).astype(np.float32)
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=256, height=256, count=1, dtype="float32", crs=CRS, transform=GRID.transform
    ) as out:
        out.write(pixels, 1)
    return str(path)


def test_unmoved_reads_what_is_stored(file: str) -> None:
    pixels, is_valid = read_on_grid(file, (1,), GRID, None, UNMOVED)
    with rasterio.open(file) as source:
        np.testing.assert_array_equal(pixels, source.read())
    assert is_valid.all()


def test_decoded_blocks_have_megabytes(file: str) -> None:
    """GDAL takes the number as bytes here; 128 of them would decode every block again for every piece."""
    with open_raster(file):
        assert get_gdal_config("GDAL_CACHEMAX") == CACHE_BYTES == 128 * 2**20


def test_whole_pixels_are_moved_without_interpolation(file: str) -> None:
    """Content stated 3 rows further down and 2 columns further left is brought back, exactly."""
    pixels, is_valid = read_on_grid(file, (1,), GRID, None, aligned(constant(np.array([3.0, -2.0]))))
    with rasterio.open(file) as source:
        stored = source.read(1)
    np.testing.assert_allclose(pixels[0, :-3, 2:], stored[3:, :-2], atol=1e-6)
    assert not is_valid[-3:].any()
    assert not is_valid[:, :2].any()


def test_local_displacement_equals_interpolation_by_hand(file: str) -> None:
    field = bump()
    pixels, is_valid = read_on_grid(file, (1,), GRID, None, aligned(field))
    y, x = np.mgrid[0:256, 0:256].astype(float)
    shift = field.at(np.stack([y.ravel() + 0.5, x.ravel() + 0.5], 1)).reshape(256, 256, 2)
    with rasterio.open(file) as source:
        wanted = ndimage.map_coordinates(source.read(1), (y + shift[..., 0], x + shift[..., 1]), order=1)
    inside = np.zeros((256, 256), bool)
    inside[8:-8, 8:-8] = True
    steepest = np.abs(np.gradient(wanted)).max()
    assert is_valid[inside].all()
    assert np.abs(pixels[0] - wanted)[inside].max() < 2 * PIECE_ERROR_PX * steepest


def test_smooth_displacement_needs_few_pieces() -> None:
    assert len(list(aligned(constant(np.array([1.0, 2.0]))).pieces(GRID))) == 1
    assert len(list(aligned(Field(np.zeros(2), np.array([[1.0, 2], [0.01, 0], [0, 0.01]]))).pieces(GRID))) == 1
    pieces = list(aligned(bump()).pieces(GRID))
    assert 16 <= len(pieces) <= 256
    covered = np.zeros((256, 256), int)
    for window, _ in pieces:
        covered[window] += 1
    assert (covered == 1).all()


def test_shift_is_the_same_ground_in_another_zone() -> None:
    """30 m east in zone 33 is 30 m nearly east, turned by the meridian convergence, in zone 32."""
    alignment = aligned(constant(np.array([0.0, -3.0])))
    here = alignment.at(501_280, 4_998_720, CRS)
    assert (here.shift_x_m, here.shift_y_m) == pytest.approx((30, 0), abs=1e-3)
    there = alignment.at(977_000, 5_020_000, "EPSG:32632")
    assert np.hypot(there.shift_x_m, there.shift_y_m) == pytest.approx(30, rel=0.005)
    assert there.shift_y_m == pytest.approx(30 * np.sin(np.radians(6 * np.sin(np.radians(45.1)))), rel=0.1)


@pytest.mark.parametrize("gsd_m", [2.5, 10.0, 20.0, 60.0])
@pytest.mark.parametrize(
    "field",
    [None, constant(np.array([0.3137, -0.71])), Field(np.full(2, 100.0), np.array([[1.3, 2.2], [4e-4, -3e-4], [2e-4, 5e-4]]))],
    ids=["none", "shift", "affine"],
)
def test_sites_are_read_as_within_the_whole(tmp_path: Path, gsd_m: float, field: Field | None) -> None:
    """Bit by bit, whichever sites and lines are asked for: noise at 60 m has many values at 10 m that are half way between
    two whole numbers, where the last bit of a position decides."""
    size, rng = round(2560 / gsd_m), np.random.default_rng(0)
    numbers = rng.integers(1, 10_000, (size, size)).astype(np.uint16)
    numbers[rng.random((size, size)) < 0.02] = 0
    path, profile = tmp_path / "noise.tif", {"driver": "GTiff", "count": 1, "dtype": "uint16", "crs": CRS, "nodata": 0}
    transform = from_origin(500_000, 5_000_000, gsd_m, gsd_m)
    with rasterio.open(path, "w", width=size, height=size, transform=transform, **profile) as out:
        out.write(numbers, 1)
    alignment = Alignment(1.0, "test", field, GRID if field else None, unit_m=640.0)
    whole, is_valid = read_on_grid(str(path), (1,), GRID, 0, alignment)
    assert is_valid.mean() > 0.5
    for _ in range(12):
        top, left = rng.integers(0, 200), 64 * rng.integers(4)
        part = slice(top, top + rng.integers(1, 57)), slice(left, min(left + 64 * rng.integers(1, 4), 256))
        pixels, there = read_on_grid(str(path), (1,), GRID[part], 0, alignment)
        np.testing.assert_array_equal(pixels, whole[:, *part])
        np.testing.assert_array_equal(there, is_valid[part])


def test_one_affine_leads_where_the_field_says() -> None:
    """The grain of shifts and slopes moves no pixel by more than a thousandth of itself."""
    field = Field(np.full(2, 100.0), np.array([[1.3, 2.2], [4e-4, -3e-4], [2e-4, 5e-4]]))
    ((_, transform),) = aligned(field).pieces(GRID)
    row, column = np.mgrid[0:256:17, 0:256:17].reshape(2, -1) + 0.5
    x, y = aligned(field).stated(*(transform_of(GRID.transform, column, row)), CRS)
    made_x, made_y = transform_of(transform, column, row)
    assert np.hypot(made_x - x, made_y - y).max() < 0.01


def test_lines_lie_where_they_do_within_the_whole_to_the_last_bit() -> None:
    field = Field(np.full(2, 100.0), np.array([[1.3, 2.2], [4e-4, -3e-4], [2e-4, 5e-4]]))
    ((_, whole),) = aligned(field).pieces(GRID)
    line = np.arange(200) + 0.5
    for top in (1, 7, 50):
        ((_, part),) = aligned(field).pieces(GRID[top:, 64:])
        here = transform_of(part, np.full(200, 0.5), line)
        np.testing.assert_array_equal(here, transform_of(whole, np.full(200, 64.5), line + top))


def transform_of(transform: rasterio.Affine, column: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return transform.a * column + transform.b * row + transform.c, transform.d * column + transform.e * row + transform.f


def test_grids_whose_sums_are_rounded_are_read_site_by_site() -> None:
    fine = GeoBox((800, 800), from_origin(500_000, 5_000_000, 0.8, 0.8), CRS)
    assert len(list(Alignment(1.0, "test", unit_m=64.0).pieces(fine))) == 100
    assert len(list(Alignment(1.0, "test", unit_m=640.0).pieces(GRID))) == 4
