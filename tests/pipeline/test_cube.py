from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from pipeline.errors import InputError
from pipeline.scan import Given, scan
from pipeline.sensors import load_sensor
from pipeline.stac import read_scenes, write_catalog
from tests.rasters import NORTH, WEST, grid, write

DATES = np.array(["2021-05-01", "2021-06-01T10:30:00"], "datetime64[ns]")
L2A = load_sensor("sentinel2_l2a")


def dataset(**attributes: Any) -> xr.Dataset:
    """Return red and near infrared (t, y, x) at 10 m, every number its own, -1 for no data; and a height without time."""
    shape = (2, 96, 80)
    red = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    red[1, 2, 3] = -1
    coords = {"t": DATES, "y": NORTH - 5 - 10.0 * np.arange(96), "x": WEST + 5 + 10.0 * np.arange(80)}
    axes, extra = ("t", "y", "x"), {"grid_mapping": "crs", "_FillValue": -1} | attributes
    images = {name: (axes, red + offset, extra) for name, offset in (("B04", 0), ("B08", 100))}
    found = xr.Dataset({**images, "slope": (axes[1:], red[0], extra), "crs": ((), 0, CRS(32632).to_cf())}, coords)
    found["B08"][1, 2, 3] = -1
    return found


def store(cube: xr.Dataset, path: Path) -> Path:
    if path.suffix == ".zarr":
        cube.to_zarr(path, zarr_format=3, consolidated=False)
    else:
        cube.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr"])
def test_every_date_of_a_cube_is_a_scene(name: str, tmp_path: Path) -> None:
    cube = dataset()
    store(cube, tmp_path / name)
    items, refused = scan(str(tmp_path), Given(L2A))
    assert refused == {}
    assert [item.id for item in items] == ["cube_20210501T000000", "cube_20210601T103000"]
    write_catalog(items, str(tmp_path / "scenes.json"))
    scenes, refused = read_scenes(str(tmp_path))
    assert refused == {}
    later = scenes[1]
    assert (later.time, later.bands) == (datetime(2021, 6, 1, 10, 30, tzinfo=UTC), ("B04", "B08"))
    values, is_valid = later.read(grid(32, west=WEST + 100, north=NORTH - 50), ("B08", "B04"))
    expected = cube["B04"].values[1, 5:37, 10:42] * 0.0001
    np.testing.assert_allclose(values[1], expected, rtol=1e-6)
    np.testing.assert_allclose(values[0], expected + 0.01, rtol=1e-6)
    assert is_valid.all()
    _, is_valid = later.read(grid(8), ("B04",))
    assert list(zip(*np.nonzero(~is_valid))) == [(2, 3)]
    _, is_valid = scenes[0].read(grid(64, west=WEST - 5000), ("B04",))
    assert not is_valid.any()


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr"])
@pytest.mark.parametrize("zone", [32632, 32633])
def test_a_window_of_a_cube_is_what_the_same_file_gives(name: str, zone: int, tmp_path: Path) -> None:
    cube = dataset()
    for folder in ("cube", "file"):
        (tmp_path / folder).mkdir()
    store(cube, tmp_path / "cube" / name)
    write(tmp_path / "file" / "S2A_MSIL2A_20210501T000000_B04.tif", cube["B04"].values[:1].astype(np.uint16), nodata=65535)
    x, y = Transformer.from_crs(32632, zone, always_xy=True).transform(WEST + 400, NORTH - 480)
    target = GeoBox.from_bbox((x - 200, y - 200, x + 200, y + 200), f"EPSG:{zone}", resolution=10)
    images = []
    for folder in ("cube", "file"):
        items, _ = scan(str(tmp_path / folder), Given(L2A))
        write_catalog(items, str(tmp_path / folder / "scenes.json"))
        images.append(read_scenes(str(tmp_path / folder))[0][0].read(target, ("B04",)))
    assert np.array_equal(images[0][1], images[1][1])
    np.testing.assert_allclose(images[0][0], images[1][0], atol=1e-4)


def test_unsigned_numbers_and_scales_as_the_variable_says(tmp_path: Path) -> None:
    cube = dataset(_Unsigned="true", scale_factor=0.0002, add_offset=-0.1)
    cube["B04"][0, :] = -5536  # stands for 60000
    store(cube, tmp_path / "cube.nc")
    items, refused = scan(str(tmp_path), Given(load_sensor("sentinel2_l2a").select(("B04",))))
    assert list(refused.values()) == [
        "none of its numbers (11.9 .. 11.9) is within 0 .. 2; its scale or unit is not what is stated"
    ]
    cube["B04"][0, :] = 2000
    cube["B04"][0, 0, 0] = -1
    (tmp_path / "cube.nc").unlink()
    store(cube, tmp_path / "cube.nc")
    items, refused = scan(str(tmp_path), Given(load_sensor("sentinel2_l2a").select(("B04",))))
    assert refused == {}
    assert items[0].assets["B04"].extra_fields["nodata"] == 65535
    write_catalog(items, str(tmp_path / "scenes.json"))
    values, is_valid = read_scenes(str(tmp_path))[0][0].read(grid(8), ("B04",))
    assert values[0, 3, 3] == pytest.approx(0.3)
    assert not is_valid[0, 0]


def without_crs(cube: xr.Dataset) -> xr.Dataset:
    cube = cube.drop_vars("crs")
    for name in cube.data_vars:
        cube[name].attrs.pop("grid_mapping")
    return cube


def unevenly_spaced(cube: xr.Dataset) -> xr.Dataset:
    return cube.assign_coords(x=cube.x.values + np.arange(80) ** 2)


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr"])
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (without_crs, "has no CRS; expected a grid mapping"),
        (unevenly_spaced, "is not evenly spaced; resample it to a grid"),
        (lambda cube: cube.drop_vars(["B04", "B08"]), "no variable of it is a band of the sensor (has slope)"),
    ],
)
def test_a_cube_that_says_too_little_is_refused(name: str, broken: Any, reason: str, tmp_path: Path) -> None:
    store(broken(dataset()), tmp_path / name)
    items, refused = scan(str(tmp_path), Given(L2A))
    assert items == []
    assert reason in refused[str(tmp_path / name)]


@pytest.mark.parametrize("name", ["cube.nc", "cube.zarr/zarr.json"])
def test_what_is_no_cube_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no cube at all")
    items, refused = scan(str(tmp_path), Given(L2A))
    assert items == []
    ((href, reason),) = refused.items()
    assert reason.startswith(f"cannot read '{href}'")


def test_a_cube_that_broke_after_the_scan_is_an_input_error(tmp_path: Path) -> None:
    path = store(dataset(), tmp_path / "cube.nc")
    items, _ = scan(str(tmp_path), Given(L2A))
    write_catalog(items, str(tmp_path / "scenes.json"))
    (scene, *_), _ = read_scenes(str(tmp_path))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot read"):
        scene.read(grid(), ("B04",))


def test_a_real_cube_of_five_sensors(shared_data: Path, tmp_path: Path) -> None:
    """Twenty months of Sentinel-2 as unsigned numbers kept signed, and the height below them."""
    items, refused = scan(str(shared_data / "worldcereal"), Given(L2A))
    assert refused == {}
    assert len(items) == 20
    write_catalog(items, str(tmp_path / "scenes.json"))
    scenes, _ = read_scenes(str(tmp_path))
    inside = GeoBox.from_bbox((664_600, 5_611_800, 665_400, 5_612_600), "EPSG:32631", resolution=10)
    values, is_valid = scenes[10].read(inside, ("B04", "B08"))
    assert is_valid.mean() > 0.5
    red, infrared = values[:, is_valid].mean(axis=1)
    assert 0 < red < infrared < 0.6
    items, _ = scan(str(shared_data / "worldcereal"), Given(load_sensor("dem"), datetime(2021, 1, 1, tzinfo=UTC)))
    assert [list(item.assets) for item in items] == [["height"]]
