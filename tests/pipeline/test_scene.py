import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.transform import from_origin

from pipeline.alignment import UNMOVED, Alignment
from pipeline.displacement import constant
from pipeline.errors import InputError
from pipeline.scan import scan
from pipeline.sensors import load_sensor
from pipeline.stac import read_scenes, write_catalog
from tests.rasters import NORTH, OPTICAL, RADAR_TAGS, TIME, WEST, counts, grid, only, write


def test_tags_and_descriptions_tell_sensor_time_and_bands(tmp_path: Path) -> None:
    pixels = counts()
    write(tmp_path / "anything.tif", pixels, tags=RADAR_TAGS, names=("VH", "vv"), nodata=-32768)
    scene = only(tmp_path)
    assert (scene.id, scene.sensor.name, scene.time, scene.bands) == ("anything", "sentinel1_grd", TIME, ("VV", "VH"))
    values, is_valid = scene.read(grid(), ("VV", "VH"))
    assert is_valid.all()
    np.testing.assert_allclose(values, pixels[::-1] * 0.01, rtol=1e-6)
    bounds = scene.footprint.to_crs("EPSG:32632").boundingbox
    np.testing.assert_allclose(bounds.bbox, (WEST, NORTH - 640, WEST + 640, NORTH), atol=0.5)


def test_one_file_a_band_becomes_one_scene(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    fine, coarse = (np.full((1, n, n), value, np.uint16) for n, value in ((64, 1000), (32, 3000)))
    write(tmp_path / "deep" / f"{OPTICAL}_B02.tif", fine)
    write(tmp_path / "deep" / f"{OPTICAL}_B05.tif", coarse, gsd_m=20)
    items, _ = scan(str(tmp_path))
    write_catalog(items, str(tmp_path / "scenes.json"))
    (scene,), _ = read_scenes(str(tmp_path / "scenes.json"))
    assert (scene.id, scene.bands, len(scene.assets)) == (OPTICAL, ("B02", "B05"), 2)
    assert scene.time == datetime(2017, 6, 17, 11, 33, 21, tzinfo=UTC)
    values, is_valid = scene.read(grid(), ("B05", "B02"))
    assert is_valid.all()
    np.testing.assert_allclose(values[:, 20, 20], (0.3, 0.1), rtol=1e-6)
    with pytest.raises(InputError, match=rf"scene '{OPTICAL}' has no band \['B08'\] \(has B02, B05\)"):
        scene.read(grid(), ("B02", "B08"))


def test_a_cloud_mask_beside_the_file_belongs_to_it(tmp_path: Path) -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, 10:20, 30:40] = 2
    write(tmp_path / "a.tif", counts(), tags=RADAR_TAGS)
    write(tmp_path / "a_cloud.tif", mask)
    scene = only(tmp_path)
    assert np.array_equal(scene.read_masks(grid())[0], mask[0] > 0)
    moved = scene.read_masks(grid(), moved_by(100.0, -50.0))[0]
    assert np.array_equal(moved[15:25, 40:50], np.ones((10, 10), bool))
    assert moved.sum() == 100


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"crs": None, "tags": RADAR_TAGS}, "has no CRS; data without one goes through 'terraloom ingest'"),
        ({"tags": {"DATETIME": TIME.isoformat()}}, "sensor unknown: neither a SENSOR tag nor a name tells; pass --sensor"),
        ({"tags": {"SENSOR": "sentinel1_grd"}}, "no acquisition time in its tags, metadata or names; pass --datetime"),
        ({"tags": RADAR_TAGS | {"SENSOR": "sentinel1_grb"}}, "did you mean 'sentinel1_grd'"),
        ({"tags": RADAR_TAGS | {"DATETIME": "last week"}}, "its time tag 'last week' is not ISO 8601"),
        ({"tags": RADAR_TAGS, "bands": 3}, "has 3 bands without known names; sensor 'sentinel1_grd' has VV, VH"),
    ],
)
def test_refused_files_say_why_and_the_others_go_on(options: dict, reason: str, tmp_path: Path) -> None:
    options = dict(options)
    write(tmp_path / "good.tif", counts(), tags=RADAR_TAGS)
    bad = write(tmp_path / "bad.tif", counts(bands=options.pop("bands", 2)), **options)
    items, refused = scan(str(tmp_path))
    assert [item.id for item in items] == ["good"]
    assert list(refused) == [str(bad)]
    assert reason in refused[str(bad)]


def test_corrupt_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "good.tif", counts(), tags=RADAR_TAGS)
    (tmp_path / "bad.tif").write_bytes(b"II*\0 no TIFF at all")
    items, refused = scan(str(tmp_path))
    assert [item.id for item in items] == ["good"]
    assert f"cannot read '{tmp_path}/bad.tif'" in refused[str(tmp_path / "bad.tif")]


def test_time_and_sensor_can_be_given(tmp_path: Path) -> None:
    write(tmp_path / "plain.tif", counts())
    scene = only(tmp_path, sensor=load_sensor("sentinel1_grd"), time=TIME)
    assert (scene.time, scene.sensor.name) == (TIME, "sentinel1_grd")
    with pytest.raises(InputError, match=r"is empty or does not exist; give a folder with \.tif"):
        scan(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"no \.tif, .* file under"):
        scan(str(tmp_path / "empty"))


def test_scaling_of_the_file_then_of_the_item_is_applied(tmp_path: Path) -> None:
    """Stored 2234 is 0.1234 with the offset of baseline 04.00, 0.2234 without; the item has the last word."""
    pixels = np.full((1, 64, 64), 2234, np.uint16)
    path = write(tmp_path / f"{OPTICAL}_B02.tif", pixels, scale=0.0001, offset=-0.1)
    assert only(tmp_path).read(grid(), ("B02",))[0][0, 5, 5] == pytest.approx(0.1234, abs=1e-6)
    catalog = tmp_path / "scenes.json"
    content = json.loads(catalog.read_text())
    (asset,) = content["features"][0]["assets"].values()
    asset["raster:scale"], asset["raster:offset"] = 0.0002, 0.05
    catalog.write_text(json.dumps(content))
    (scene,), _ = read_scenes(str(catalog))
    assert scene.read(grid(), ("B02",))[0][0, 5, 5] == pytest.approx(0.4968, abs=1e-6)
    write(path, pixels)
    assert only(tmp_path).read(grid(), ("B02",))[0][0, 5, 5] == pytest.approx(0.2234, abs=1e-6)


def test_floats_are_physical_values_and_not_finite_ones_no_data(tmp_path: Path) -> None:
    pixels = counts() / np.float32(100)
    pixels[1, 3, 4] = np.nan
    write(tmp_path / "a.tif", pixels, tags=RADAR_TAGS)
    values, is_valid = only(tmp_path).read(grid(), ("VV", "VH"))
    assert not is_valid[3, 4]
    assert is_valid.sum() == 64 * 64 - 1
    np.testing.assert_array_equal(values[:, is_valid], pixels[:, is_valid])


@pytest.mark.parametrize("floating", [False, True])
def test_ground_beyond_the_file_is_not_valid(floating: bool, tmp_path: Path) -> None:
    pixels = counts()
    write(tmp_path / "a.tif", pixels / np.float32(100) if floating else pixels, tags=RADAR_TAGS)
    values, is_valid = only(tmp_path).read(grid(west=WEST + 320, north=NORTH - 160), ("VV",))
    expected = np.zeros((64, 64), bool)
    expected[:48, :32] = True
    assert np.array_equal(is_valid, expected)
    np.testing.assert_allclose(values[0, :48, :32], pixels[0, 16:, 32:] * 0.01, rtol=1e-6)


def test_whole_pixel_shift_moves_content_south_east_without_loss(tmp_path: Path) -> None:
    """20 m east and 30 m south is 2 columns right and 3 rows down on a 10 m grid."""
    pixels = counts()
    write(tmp_path / "a.tif", pixels, tags=RADAR_TAGS, nodata=-32768)
    values, is_valid = only(tmp_path).read(grid(), ("VV",), moved_by(20.0, -30.0))
    np.testing.assert_allclose(values[0, 3:, 2:], pixels[0, :-3, :-2] * 0.01, rtol=1e-6)
    assert is_valid[3:, 2:].all()
    assert not is_valid[:3].any()
    assert not is_valid[:, :2].any()


def test_half_pixel_shift_is_the_mean_of_two_neighbours(tmp_path: Path) -> None:
    pixels = counts() / np.float32(100)
    write(tmp_path / "a.tif", pixels, tags=RADAR_TAGS)
    values, _ = only(tmp_path).read(grid(), ("VV",), moved_by(5.0, 0.0))
    np.testing.assert_allclose(values[0, :, 1:], (pixels[0, :, 1:] + pixels[0, :, :-1]) / 2, rtol=1e-5)


@pytest.mark.parametrize(("gsd_m", "zone"), [(10, 32632), (5, 32632), (20, 32632), (10, 32633)])
def test_shift_on_reading_equals_a_moved_transform(gsd_m: float, zone: int, tmp_path: Path) -> None:
    """One resampling: reading with a shift gives the very pixels of a file that states the true place, also in the next zone."""
    shift_m = (13.7, -6.2)
    images = []
    for name, (x, y) in (("stated", (0, 0)), ("true", shift_m)):
        (tmp_path / name).mkdir()
        write(
            tmp_path / name / "a.tif",
            counts(size=128),
            tags=RADAR_TAGS,
            nodata=-32768,
            transform=from_origin(WEST + x, NORTH + y, 10, 10),
        )
        scene = only(tmp_path / name)
        target = grid(48, gsd_m, WEST + 100, NORTH - 100)
        if zone == 32633:  # here the file moves along its own axes, which the next zone sees turned by 4.4 degrees
            middle = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True).transform(WEST + 640, NORTH - 640)
            target = GeoBox((32, 32), from_origin(round(middle[0], -1), round(middle[1], -1), 10, 10), "EPSG:32633")
        applied = UNMOVED if name == "true" else moved_by(*shift_m)
        images.append(scene.read(target, ("VV", "VH"), applied))
    (first, first_valid), (second, second_valid) = images
    assert first_valid.all()
    assert second_valid.all()
    assert first.std() > 1
    np.testing.assert_allclose(first, second, atol=0.011)


def moved_by(x_m: float, y_m: float) -> Alignment:
    """Return the alignment of a scene to whose coordinates (x_m, y_m) of EPSG:32632 must be added."""
    return Alignment(1.0, "test", constant(np.array([y_m, -x_m]) / 10), grid())


def test_file_that_broke_after_the_scan_is_an_input_error(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", counts(size=256), tags=RADAR_TAGS, tiled=True, blockxsize=64, blockysize=64, compress="deflate"
    )
    scene = only(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(InputError, match=f"cannot read '{path}'"):
        scene.read(grid(256), ("VV",))
    path.unlink()
    with pytest.raises(InputError, match=f"cannot read '{path}'"):
        scene.read(grid(), ("VV",))


def test_items_that_say_too_little_are_refused_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", counts(), tags=RADAR_TAGS)
    write(tmp_path / "b.tif", counts(), tags=RADAR_TAGS)
    items, _ = scan(str(tmp_path))
    del items[0].properties["terraloom:sensor"]
    (asset,) = items[1].assets.values()
    asset.extra_fields["bands"] = [{"name": "HH"}]
    write_catalog(items, str(tmp_path / "scenes.json"))
    scenes, refused = read_scenes(str(tmp_path))
    assert scenes == []
    assert refused == {
        "a": "names no sensor; add the property 'terraloom:sensor'",
        "b": "no asset has a band of sensor 'sentinel1_grd' (VV, VH)",
    }


def test_what_is_no_catalog_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no STAC catalog at '.*/scenes.json'; write one with 'terraloom scan FOLDER'"):
        read_scenes(str(tmp_path))
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(InputError, match=r"is no STAC ItemCollection or catalog \(type is None\)"):
        read_scenes(str(other))
    other.write_text("not json")
    with pytest.raises(InputError, match="is not JSON"):
        read_scenes(str(other))


def test_nothing_in_one_band_of_a_file_is_no_data(tmp_path: Path) -> None:
    """A band that is zero-filled in part must not count as measured darkness."""
    pixels = np.full((12, 64, 64), 1500, np.uint16)
    pixels[7, :10, :10] = 0
    write(tmp_path / f"{OPTICAL}.tif", pixels)
    scene = only(tmp_path)
    _, is_valid = scene.read(grid(), ("B02", "B08"))
    assert (~is_valid).sum() == 100
    assert scene.read(grid(), ("B02",))[1].all()
