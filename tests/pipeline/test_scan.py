import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from pipeline.errors import InputError
from pipeline.scan import Given, scan
from pipeline.sensors import load_sensor
from pipeline.stac import read_scenes
from tests.rasters import NORTH, RADAR_TAGS, TIME, counts, grid, only, write

SAFE = "S2A_MSIL2A_20220601T101031_N0400_R022_T32UPU_20220601T161031.SAFE"
LANDSAT = "LC09_L1TP_013032_20220131_20220207_02_T1"
MTL = """GROUP = LANDSAT_METADATA_FILE
  GROUP = IMAGE_ATTRIBUTES
    DATE_ACQUIRED = 2022-01-31
    SCENE_CENTER_TIME = "15:33:46.1234567Z"
    SUN_ELEVATION = 30.0
  END_GROUP = IMAGE_ATTRIBUTES
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
    REFLECTANCE_MULT_BAND_4 = 2.0000E-05
    REFLECTANCE_ADD_BAND_4 = -0.100000
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
"""


def flat(value: float, dtype: Any = np.uint16, size: int = 64, bands: int = 1) -> np.ndarray:
    """Return an image of one number, but for one pixel that says 0 and is no data."""
    pixels = np.full((bands, size, size), value, dtype)
    pixels[:, 0, 0] = 0
    return pixels


def safe_metadata(offset: int | None, baseline: str = "04.00") -> str:
    offsets = "" if offset is None else "".join(f'<BOA_ADD_OFFSET band_id="{i}">{offset}</BOA_ADD_OFFSET>' for i in range(13))
    return (
        "<n1:Level-2A_User_Product xmlns:n1='x'><Product_Info><PRODUCT_START_TIME>2022-06-01T10:10:31.024Z</PRODUCT_START_TIME>"
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE></Product_Info>"
        f"<BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>{offsets}</n1:Level-2A_User_Product>"
    )


def write_safe(folder: Path, metadata: str) -> Path:
    """Write a Sentinel-2 product as it is delivered: bands at several pixel sizes, masks, footprints, previews."""
    images = folder / SAFE / "GRANULE" / "L2A_T32UPU" / "IMG_DATA"
    for sub in ("R10m", "R20m", "../QI_DATA"):
        (images / sub).mkdir(parents=True)
    (folder / SAFE / "MTD_MSIL2A.xml").write_text(metadata)
    stem = "T32UPU_20220601T101031"
    for sub, ending, gsd_m, size, value in (
        ("R10m", "B02_10m", 10, 64, 2000), ("R20m", "B02_20m", 20, 32, 9999), ("R20m", "B05_20m", 20, 32, 3000),
    ):  # fmt: skip
        write(images / sub / f"{stem}_{ending}.tif", flat(value, size=size), gsd_m=gsd_m)
    write(images / "R10m" / f"{stem}_TCI_10m.tif", flat(9, np.uint8, bands=3))
    write(images / "../QI_DATA" / "MSK_DETFOO_B02.tif", flat(1, np.uint8))
    classes = flat(4, np.uint8, size=32)
    classes[0, 10:12, 10:12], classes[0, 20:22, 20:22], classes[0, 0, 30] = 9, 3, 0
    write(images / "R20m" / f"{stem}_SCL_20m.tif", classes, gsd_m=20)
    return folder


@pytest.mark.parametrize(("offset", "expected"), [(-1000, (0.1, 0.2)), (0, (0.2, 0.3))])
def test_a_safe_is_one_scene_with_its_own_offset(offset: int, expected: tuple[float, float], tmp_path: Path) -> None:
    scene = only(write_safe(tmp_path, safe_metadata(offset)))
    assert (scene.id, scene.bands, scene.time.microsecond) == (SAFE.removesuffix(".SAFE"), ("B02", "B05"), 24000)
    values, is_valid = scene.read(grid(), ("B02", "B05"))
    np.testing.assert_allclose(values[:, 30, 30], expected, rtol=1e-6)
    assert not is_valid[0, 0]
    is_cloud, is_gap = scene.read_masks(grid())
    assert is_cloud[20:24, 20:24].all()
    assert is_cloud[40:44, 40:44].all()
    assert is_cloud.sum() == 32
    assert is_gap[0, 61]
    assert is_gap.sum() == 8  # class 0 at the corner, and at (0, 30) of 20 m


def test_an_offset_that_the_baseline_has_but_the_metadata_does_not_is_refused(tmp_path: Path) -> None:
    items, refused = scan(str(write_safe(tmp_path, safe_metadata(None))))
    assert items == []
    assert any("metadata 'MTD_MSIL2A.xml' does not state 'the offsets that baseline 04.00 has'" in r for r in refused.values())


def test_without_metadata_the_baseline_in_the_name_tells_and_without_one_the_assumption_is_said(tmp_path: Path) -> None:
    name = "S2A_MSIL2A_20220601T101031_{}R022_T32UPU_20220601T161031"
    write(tmp_path / f"{name.format('N0400_')}_B02.tif", flat(2000))
    write(tmp_path / f"{name.format('')}_B02.tif", flat(2000))
    items, _ = scan(str(tmp_path))
    said = {item.assets["B02"].extra_fields["raster:offset"]: item.properties.get("terraloom:assumed") for item in items}
    assert said == {-0.1: None, 0.0: "no processing baseline stated: taken to have no offset"}


@pytest.mark.parametrize("notation", ["txt", "json", "xml"])
def test_landsat_level_1_needs_its_mtl(notation: str, tmp_path: Path) -> None:
    """Reflectance = (2e-5 DN - 0.1) / sin(30 degrees)."""
    write(tmp_path / f"{LANDSAT}_B4.TIF", flat(10000))
    write(tmp_path / f"{LANDSAT}_B10.TIF", flat(20000))
    quality = flat(1 << 6)
    quality[0, 5, 5], quality[0, 6, 6], quality[0, 7, 7] = 1 << 3, 1 << 4, 1
    write(tmp_path / f"{LANDSAT}_QA_PIXEL.TIF", quality)
    items, refused = scan(str(tmp_path))
    assert items == []
    assert "has no LC09_L1TP_013032_20220131_20220207_02_T1_MTL file beside it" in refused[f"{tmp_path}/{LANDSAT}_B4.TIF"]
    lines = [[part.strip().strip('"') for part in line.split("=")] for line in MTL.splitlines()[1:-1]]
    groups: dict[str, Any] = {name: {} for key, name in lines if key == "GROUP"}
    groups["IMAGE_ATTRIBUTES"] |= dict(lines[1:4])
    groups["LEVEL1_RADIOMETRIC_RESCALING"] |= dict(lines[6:8])
    inner = "".join(f"<{g}>{''.join(f'<{k}>{v}</{k}>' for k, v in d.items())}</{g}>" for g, d in groups.items())
    text = {"txt": MTL, "json": json.dumps({"LANDSAT_METADATA_FILE": groups}), "xml": f"<L>{inner}</L>"}[notation]
    (tmp_path / f"{LANDSAT}_MTL.{notation}").write_text(text)
    scene = only(tmp_path)
    assert (scene.sensor.name, scene.bands, scene.time.hour) == ("landsat_oli_l1", ("B4",), 15)
    assert scene.read(grid(), ("B4",))[0][0, 9, 9] == pytest.approx(0.2, abs=1e-6)
    is_cloud, is_gap = scene.read_masks(grid())
    assert sorted(zip(*np.nonzero(is_cloud))) == [(5, 5), (6, 6)]
    assert sorted(zip(*np.nonzero(is_gap))) == [(7, 7)]


def test_landsat_level_2_and_hls_by_hand(tmp_path: Path) -> None:
    name = "LC08_L2SP_013032_20200101_20200107_02_T1"
    write(tmp_path / "usgs" / f"{name}_SR_B4.TIF", flat(20000))
    write(tmp_path / "usgs" / f"{name}_ST_B10.TIF", flat(44000))
    landsat = only(tmp_path / "usgs")
    assert landsat.read(grid(), ("B4",))[0][0, 9, 9] == pytest.approx(2.75e-5 * 20000 - 0.2)
    name = "HLS.L30.T32UPU.2021032T101031.v2.0"
    red = flat(1234, np.int16)
    red[0, 3, 3] = -9999
    write(tmp_path / "hls" / f"{name}.B04.tif", red)
    write(tmp_path / "hls" / f"{name}.Fmask.tif", flat(0b10, np.uint8))
    hls = only(tmp_path / "hls")
    assert (hls.sensor.name, hls.time) == ("hls_l30", datetime(2021, 2, 1, 10, 10, 31, tzinfo=UTC))
    values, is_valid = hls.read(grid(), ("B04",))
    assert values[0, 9, 9] == pytest.approx(0.1234)
    assert not is_valid[3, 3]
    assert is_valid[0, 0]  # 0 is a measurement here
    assert hls.read_masks(grid())[0].sum() == 64 * 64 - 1


def test_linear_power_is_declared_and_what_contradicts_it_refused(tmp_path: Path) -> None:
    power = np.random.default_rng(0).uniform(0.01, 0.3, (2, 64, 64)).astype(np.float32)
    name = "S1A_IW_GRDH_1SDV_20230101T000000"
    write(tmp_path / f"{name}_rtc.tif", power)
    rtc = only(tmp_path)
    assert rtc.sensor.name == "sentinel1_rtc"
    values, _ = rtc.read(grid(), ("VV",))
    np.testing.assert_allclose(values[0], 10 * np.log10(power[0]), rtol=1e-4)
    (tmp_path / f"{name}_rtc.tif").rename(tmp_path / f"{name}.tif")
    items, refused = scan(str(tmp_path))
    assert items == []
    assert "said to be dB, but none of its numbers is negative" in refused[f"{tmp_path}/{name}.tif"]
    np.testing.assert_allclose(only(tmp_path, unit="power").read(grid(), ("VV",))[0], values, rtol=1e-6)
    _, refused = scan(str(tmp_path), Given(unit="kelvin"))
    assert "unit 'kelvin' is not one of sigma0 (known: dB, power, amplitude)" in refused[f"{tmp_path}/{name}.tif"]


def break_truncated(path: Path) -> None:
    write(path, counts(size=512), tags=RADAR_TAGS)
    path.write_bytes(path.read_bytes()[:-20_000])


def break_two_dtypes(path: Path) -> None:
    write(path.parent / "S2A_MSIL2A_20170617T113321_B02.tif", flat(2000))
    write(path.parent / "S2A_MSIL2A_20170617T113321_B03.tif", flat(0.2, np.float32))


BROKEN: dict[str, tuple[Any, str]] = {
    "truncated": (break_truncated, "cannot read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot read"),
    "nan": (lambda path: write(path, counts(), tags=RADAR_TAGS, transform=Affine(10, 0, np.nan, 0, -10, NORTH)), "places no pixel"),
    "nowhere": (
        lambda path: write(path, counts(), tags=RADAR_TAGS, transform=Affine(10, 0, 1e9, 0, -10, 1e9)),
        "is not on the Earth",
    ),
    "no_crs": (lambda path: write(path, counts(), tags=RADAR_TAGS, crs=None), "has no CRS; data without one goes through"),
    "bands": (lambda path: write(path, counts(bands=3), tags=RADAR_TAGS), "has 3 bands without known names"),
    "dtypes": (break_two_dtypes, "the files of its scene have different dtypes (float32, uint16)"),
    "mask": (lambda path: write(path.parent / f"{LANDSAT}_QA_PIXEL.tif", flat(1)), "is a quality layer of no scene here"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_malformed_file_is_refused_with_its_reason_and_the_rest_goes_on(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "good.tif", counts(), tags=RADAR_TAGS)
    make, reason = BROKEN[kind]
    make(tmp_path / "bad.tif")
    items, refused = scan(str(tmp_path))
    assert [item.id for item in items] == ["good"]
    assert set(refused) == {str(path) for path in tmp_path.glob("*.tif")} - {str(tmp_path / "good.tif")}
    for said in refused.values():
        assert reason in said
        assert "\n" not in said


def test_a_virtual_raster_that_could_lead_anywhere_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "good.tif", counts(), tags=RADAR_TAGS)
    shutil.copy(path, tmp_path / "elsewhere.bin")
    (tmp_path / "bad.tif").write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Int16" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path}/elsewhere.bin</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    _, refused = scan(str(tmp_path))
    assert "is a VRT file; expected one of GTiff" in refused[str(tmp_path / "bad.tif")]


def test_items_are_valid_stac_and_follow_their_folder(tmp_path: Path) -> None:
    write(tmp_path / "here" / "a.tif", counts(), tags=RADAR_TAGS, names=("VV", "VH"))
    assert only(tmp_path / "here").assets[0].href == str(tmp_path / "here" / "a.tif")
    (tmp_path / "here").rename(tmp_path / "there")
    content = json.loads((tmp_path / "there" / "scenes.json").read_text())
    (feature,) = content["features"]
    assert feature["assets"]["pixels"]["href"] == "a.tif"
    assert feature["stac_version"].startswith("1.")
    assert feature["properties"]["datetime"] == TIME.isoformat().replace("+00:00", "Z")
    (scene,), _ = read_scenes(str(tmp_path / "there"))
    assert scene.read(grid(), ("VV",))[1].all()


def test_real_landsat_scenes_with_clouds(shared_data: Path) -> None:
    """14 whole scenes at about 3 km with their quality bands; no MTL came with them, so they stay digital numbers."""
    items, refused = scan(str(shared_data / "landsat8_overview"))
    assert items == []
    assert len(refused) >= 14
    items, refused = scan(str(shared_data / "landsat8_overview"), Given(load_sensor("landsat_oli_dn")))
    assert refused == {}
    assert len(items) == 14
    assert all(set(item.assets) >= {"B1", "B8", "BQA"} for item in items)


@pytest.mark.parametrize(
    ("folder", "sensor", "band", "low", "high"),
    [("naip", "naip", "nir", 1, 255), ("lidar_dsm", "dsm", "height", -50, 500)],
)
def test_real_aerial_and_height_files(folder: str, sensor: str, band: str, low: float, high: float, shared_data: Path) -> None:
    items, _ = scan(str(shared_data / folder), Given(time=TIME))
    (first, *_) = [item for item in items if item.properties["terraloom:sensor"]["name"] == sensor]
    (asset,) = first.assets.values()
    with rasterio.open(asset.href) as source:
        stored = source.read(first.assets[next(iter(first.assets))].extra_fields["bands"].index({"name": band}) + 1)
        values = stored[stored != source.nodata]
    assert low <= np.percentile(values, 1) < np.percentile(values, 99) <= high


def test_a_folder_without_files_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty or does not exist"):
        scan(str(tmp_path))
