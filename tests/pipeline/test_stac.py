import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.scan import scan
from pipeline.scene import Scene
from pipeline.stac import read_scenes, write_catalog
from tests.rasters import NORTH, RADAR_TAGS, WEST, counts, grid, write

TIME = "2022-06-01T10:10:31Z"
# Longitudes and latitudes around (WEST, NORTH) of EPSG:32632.
SQUARE = {"type": "Polygon", "coordinates": [[[10.86, 47.74], [10.89, 47.74], [10.89, 47.76], [10.86, 47.76], [10.86, 47.74]]]}


def item(name: str, assets: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": SQUARE, "bbox": [10.86, 47.74, 10.89, 47.76],
        "properties": {"datetime": TIME} | properties, "links": [], "assets": assets,
    }  # fmt: skip


def read(folder: Path, *items: dict[str, Any]) -> tuple[list[Scene], dict[str, str]]:
    (folder / "scenes.json").write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return read_scenes(str(folder))


def earth_search(folder: Path, bands: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """Return an item as Earth Search publishes Sentinel-2 level 2A: common names, a picture, a scene classification."""
    write(folder / "B04.tif", np.full((1, 64, 64), 3000, np.uint16))
    assets = {
        "visual": {"href": "./TCI.tif", "roles": ["visual"], "eo:bands": [{"name": n} for n in ("red", "green", "blue")]},
        "red": {"href": "./B04.tif", "eo:bands": [{"name": "red", "common_name": "red"}], "raster:bands": [bands]},
        "scl": {"href": "./SCL.tif", "roles": ["data"]},
    }
    return item("S2A_32UPU_20220601_0_L2A", assets, **properties) | {"collection": "sentinel-2-l2a"}


STATED = {"data_type": "uint16", "scale": 0.0001, "offset": -0.1, "nodata": 0}


@pytest.mark.parametrize(
    ("bands", "properties", "red"),
    [
        (STATED, {}, 0.2),
        (STATED, {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "04.00"}, 0.3),
        (STATED, {"earthsearch:boa_offset_applied": False}, 0.2),
        ({"data_type": "uint16", "nodata": 0}, {"s2:processing_baseline": "05.09"}, 0.2),
        ({}, {"s2:processing_baseline": "02.14"}, 0.3),
    ],
)
def test_the_offset_of_sentinel2_comes_from_the_item(bands: dict, properties: dict, red: float, tmp_path: Path) -> None:
    """The date is after 2022-01-25 in every case: it tells nothing."""
    (scene,), refused = read(tmp_path, earth_search(tmp_path, bands, **properties))
    assert refused == {}
    assert (scene.sensor.name, scene.bands, len(scene.masks)) == ("sentinel2_l2a", ("B04",), 1)
    assert scene.read(grid(), ("B04",))[0][0, 5, 5] == pytest.approx(red, abs=1e-6)


def test_without_offset_and_baseline_an_item_is_refused(tmp_path: Path) -> None:
    scenes, refused = read(tmp_path, earth_search(tmp_path, {}))
    assert scenes == []
    assert "states neither an offset nor a processing baseline" in refused["S2A_32UPU_20220601_0_L2A"]


def test_radar_of_planetary_computer_is_linear_power(tmp_path: Path) -> None:
    write(tmp_path / "vv.tif", np.full((1, 64, 64), 0.1, np.float32), nodata=-32768)
    assets = {"vv": {"href": "vv.tif", "raster:bands": [{"nodata": -32768}]}, "rendered": {"href": "x.png", "roles": ["overview"]}}
    (scene,), _ = read(tmp_path, item("S1A_IW_GRDH_1SDV_20220601_rtc", assets) | {"collection": "sentinel-1-rtc"})
    assert (scene.sensor.name, scene.assets[0].form) == ("sentinel1_rtc", "power")
    np.testing.assert_allclose(scene.read(grid(), ("VV",))[0], -10, atol=1e-5)


def good(folder: Path) -> dict[str, Any]:
    write(folder / "good.tif", counts())
    asset = {"href": "good.tif", "bands": [{"name": "VV"}, {"name": "VH"}], "data_type": "int16"}
    return item("good", {"pixels": asset}, **{"terraloom:sensor": "sentinel1_grd"})


def changed(record: dict[str, Any], href: str | None = None, **properties: Any) -> dict[str, Any]:
    record = json.loads(json.dumps(record)) | {"id": "bad"}
    record["properties"] |= properties
    if href:
        record["assets"]["pixels"]["href"] = href
    return record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"datetime": None}, "has no datetime"),
        ({"datetime": "last week"}, "its datetime 'last week' is not ISO 8601"),
        ({"href": "../../etc/passwd"}, "leads out of the catalog's folder"),
        ({"href": "sub/../../elsewhere.tif"}, "leads out of the catalog's folder"),
        ({"href": "/vsicurl/http://x/y.tif"}, "expected a relative path, s3:// or https://"),
        ({"href": "ftp://x/y.tif"}, "expected a relative path, s3:// or https://"),
        ({"terraloom:sensor": "sentinel9"}, "sensor 'sentinel9' is unknown"),
        ({"terraloom:sensor": "naip"}, "no asset has a band of sensor 'naip'"),
    ],
)
def test_each_faulty_item_is_refused_with_its_reason_and_the_rest_goes_on(change: dict, reason: str, tmp_path: Path) -> None:
    record = good(tmp_path)
    scenes, refused = read(tmp_path, changed(record, **change), record)
    assert [scene.id for scene in scenes] == ["good"]
    assert list(refused) == ["bad"]
    assert reason in refused["bad"]


def test_what_is_no_outline_and_what_comes_twice_is_refused(tmp_path: Path) -> None:
    record = good(tmp_path)
    bad = record | {"id": "bad", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    scenes, refused = read(tmp_path, record, bad, record, record | {"id": "none", "geometry": None})
    assert len(scenes) == 1
    assert refused["bad"] == refused["none"] == "has no geometry that is a polygon; expected the outline of the scene in lon/lat"
    assert "another item has the same id" in refused["good"]


def test_a_period_begins_a_scene(tmp_path: Path) -> None:
    (scene,), _ = read(tmp_path, changed(good(tmp_path), datetime=None, start_datetime=TIME, end_datetime="2022-06-02T00:00:00Z"))
    assert scene.time.isoformat() == "2022-06-01T10:10:31+00:00"


def test_a_static_catalog_is_walked_and_its_broken_branches_are_named(tmp_path: Path) -> None:
    record = good(tmp_path)
    record["assets"]["pixels"]["href"] = "../../good.tif"
    (tmp_path / "items" / "one").mkdir(parents=True)
    (tmp_path / "items" / "one" / "one.json").write_text(json.dumps(record))
    links = [
        {"rel": "item", "href": "./one/one.json"},
        {"rel": "item", "href": "./gone.json"},
        {"rel": "child", "href": "./catalog.json"},
    ]
    (tmp_path / "items" / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "inner", "links": links}))
    root = tmp_path / "catalog.json"
    root.write_text(json.dumps({"type": "Catalog", "id": "outer", "links": [{"rel": "child", "href": "./items/catalog.json"}]}))
    scenes, refused = read_scenes(str(root))
    assert [scene.id for scene in scenes] == ["good"]
    assert scenes[0].assets[0].href == str(tmp_path / "good.tif")
    assert list(refused) == ["./gone.json"]


def test_absolute_paths_are_the_users_own_only_in_a_local_catalog(tmp_path: Path) -> None:
    from pipeline.stac import _resolve

    assert _resolve("/data/a.tif", "/catalogs", "/catalogs") == "/data/a.tif"
    assert _resolve("s3://bucket/a.tif", "/catalogs", "/catalogs") == "s3://bucket/a.tif"
    assert _resolve("../a.tif", "s3://bucket/x/y", "s3://bucket/x") == "s3://bucket/x/a.tif"
    with pytest.raises(InputError, match="lies on this machine, but the catalog 's3://bucket/x' does not"):
        _resolve("/data/a.tif", "s3://bucket/x", "s3://bucket/x")
    with pytest.raises(InputError, match="leads out of the catalog's folder"):
        _resolve("../../other/a.tif", "s3://bucket/x/y", "s3://bucket/x")


def test_a_catalog_beside_the_folder_names_files_in_full(tmp_path: Path) -> None:
    write(tmp_path / "scenes" / "a.tif", counts(), tags=RADAR_TAGS)
    items, _ = scan(str(tmp_path / "scenes"))
    write_catalog(items, str(tmp_path / "out" / "scenes.json"))
    (scene,), _ = read_scenes(str(tmp_path / "out"))
    assert scene.assets[0].href == str(tmp_path / "scenes" / "a.tif")
    bounds = scene.footprint.to_crs("EPSG:32632").boundingbox
    np.testing.assert_allclose(bounds.bbox, (WEST, NORTH - 640, WEST + 640, NORTH), atol=0.5)


def test_a_catalog_and_its_files_are_read_over_http(tmp_path: Path) -> None:
    record = good(tmp_path)
    (tmp_path / "scenes.json").write_text(json.dumps({"type": "FeatureCollection", "features": [record]}))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (scene,), refused = read_scenes(f"{url}/scenes.json")
        assert refused == {}
        assert scene.assets[0].href == f"{url}/good.tif"
        values, is_valid = scene.read(grid(), ("VV",))
        with pytest.raises(InputError, match="no STAC catalog at"):
            read_scenes(f"{url}/other.json")
        server.shutdown()
    assert is_valid.all()
    np.testing.assert_allclose(values[0], counts()[0] * 0.01, rtol=1e-6)
