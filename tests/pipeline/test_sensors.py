from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.sensors import check_sensor
from pipeline.errors import InputError
from pipeline.sensors import definition_faults, known_sensors, load_sensor, recognise, sensor_from_dict

RADAR = {
    "name": "x", "sensing": "active", "quantity": "sigma0", "unit": "dB", "gsd_m": 10, "dtype": "int16", "scale": 0.01,
    "valid_range": [-50, 30], "bands": [{"name": "VV", "gsd_m": 10, "frequency_ghz": 5.4, "polarisation": "VV"}],
}  # fmt: skip


def test_every_shipped_sensor_loads_under_its_own_name() -> None:
    assert {"sentinel1_grd", "sentinel2_l2a", "sentinel2_l1c", "rgb_aerial", "dsm"} <= set(known_sensors())
    for name in known_sensors():
        sensor = load_sensor(name)
        assert sensor.name == name
        assert sensor_from_dict(sensor.model_dump(mode="json", exclude_defaults=True), "again") == sensor


def test_stored_numbers_by_hand() -> None:
    assert load_sensor("sentinel1_grd").to_physical(np.array([-1234], np.int16))[0] == pytest.approx(-12.34)
    assert load_sensor("sentinel2_l2a").to_stored(np.array([0.1234, 9.0, -1.0, np.nan])).tolist() == [1234, 65535, 0, 0]
    assert load_sensor("dsm").to_stored(np.array([0.0, 1000.0])).tolist() == [-10000, 0]
    assert load_sensor("sentinel2_l2a").to_physical(np.array([2234]), 0.0001, -0.1)[0] == pytest.approx(0.1234)


@pytest.mark.parametrize("name", known_sensors())
def test_what_the_dtype_holds_survives_the_way_to_units_and_back(name: str) -> None:
    sensor = load_sensor(name)
    stored = sensor.to_stored(np.linspace(*sensor.valid_range, 997))
    assert stored.dtype == sensor.dtype
    assert len(np.unique(stored)) > 200
    physical = sensor.to_physical(stored)
    assert physical.dtype == np.float32
    assert np.array_equal(sensor.to_stored(physical), stored)
    np.testing.assert_allclose(physical, np.linspace(*sensor.valid_range, 997), atol=0.51 * sensor.scale + 1e-6)


def test_tile_shape() -> None:
    assert load_sensor("sentinel2_l2a").tile_shape(640) == (64, 64)
    assert load_sensor("rgb_aerial").tile_shape(640) == (256, 256)
    with pytest.raises(InputError, match="site of 645 m is not a whole number of 10 m pixels of sensor 'sentinel2_l2a'"):
        load_sensor("sentinel2_l2a").tile_shape(645)


def test_bands_are_found_by_name_alias_and_case() -> None:
    sensor = load_sensor("sentinel2_l2a")
    assert [sensor.band(n).name for n in ("B08", "b8", "NIR", "B8A")] == ["B08", "B08", "B08", "B8A"]
    assert sensor.select(("nir", "B02")).band_names == ("B02", "B08")
    with pytest.raises(InputError, match=r"band 'B80' is not in sensor 'sentinel2_l2a' \(has B01, .*, B12\); did you mean 'B8'\?"):
        sensor.band("B80")


def test_files_are_recognised_by_name() -> None:
    known = {
        "S2A_MSIL2A_20170617T113321_36_85_B02.tif": "sentinel2_l2a",
        "S2B_MSIL1C_20200101T101010.tif": "sentinel2_l1c",
        "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39_VV.tif": "sentinel1_grd",
        "OPERA_L2_RTC-S1_T064-135518-IW1_20231101T012345Z_20231102T012345Z_S1A_30_v1.0_VV.tif": "sentinel1_rtc",
        "S1A_IW_GRDH_1SDV_20230101T000000_20230101T000025_046593_059570_rtc": "sentinel1_rtc",
        "LC09_L2SP_013032_20230101_20230103_02_T1_SR_B4.TIF": "landsat_oli_l2",
        "LC08_L1TP_013032_20180131_20180207_01_T1_B4.TIF": "landsat_oli_l1",
        "HLS.L30.T10SEH.2021001T184523.v2.0.B04.tif": "hls_l30",
        "HLS.S30.T10SEH.2021001T184523.v2.0.B8A.tif": "hls_s30",
        "m_4709963_se_14_1_20100629.tif": "naip",
        "Copernicus_DSM_COG_10_N47_00_E011_00_DEM.tif": "dem",
        "dsm.tif": "dsm",
        "16FEB12162517-M2AS-056155973080_01_P001.TIF": "worldview_ms",
        "16FEB12162517-P2AS-056155973080_01_P001.TIF": "worldview_pan",
    }
    for name, expected in known.items():
        found = recognise([name])
        assert found is not None
        assert found.name == expected
    assert recognise(["holiday.tif", "trip"]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantity": "colour"}, "quantity 'colour' is unknown .known: surface_reflectance"),
        ({"unit": "1"}, "unit '1' does not fit quantity 'sigma0' .expected 'dB'"),
        ({"bands": RADAR["bands"] * 2}, r"band names must be present and distinct, found \['VV', 'VV'\]"),
        ({"bands": []}, "band names must be present and distinct"),
        ({"bands": [{"name": "VV", "gsd_m": 10}]}, r"radar bands need frequency_ghz and polarisation, missing on \['VV'\]"),
        ({"quantity": "toa_reflectance", "unit": "1"}, r"reflectance bands need wavelength_nm, missing on \['VV'\]"),
        ({"dtype": "int32"}, "dtype: Input should be 'uint8', 'int16', 'uint16' or 'float32'"),
        ({"colour": 1}, "colour: is not a field"),
    ],
)
def test_invalid_definition_says_what_is_wrong(changes: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RADAR | changes))
    with pytest.raises(InputError, match=f"sensor definition .*mine.yaml is not valid: .*{message}"):
        load_sensor(str(path))


def test_a_users_yaml_is_a_sensor_and_a_wrong_name_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RADAR))
    assert load_sensor(str(path)).band_names == ("VV",)
    with pytest.raises(InputError, match=r"sensor 'sentinel2_l2' is unknown \(known: dem, .*\); did you mean 'sentinel2_l2a'\?"):
        load_sensor("sentinel2_l2")


@pytest.mark.parametrize("text", ["name: [unclosed", "just a word", ""])
def test_a_file_that_is_no_definition_is_an_input_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"broken\.yaml"):
        load_sensor(str(path))


def test_every_fault_of_a_definition_is_said_at_once(tmp_path: Path) -> None:
    wrong = RADAR | {"unit": "1", "scale": 0, "valid_range": [3, 2], "colour": 1, "filename": "S1[", "dtype": "int32"}
    del wrong["gsd_m"]
    faults = definition_faults(wrong)
    for expected in ("gsd_m: is missing", "colour: is not a field", "dtype: ", "unit '1' does not fit quantity 'sigma0'",
                     "scale must not be 0", "valid_range [3, 2] is empty", "is not a regular expression"):  # fmt: skip
        assert sum(expected in fault for fault in faults) == 1, expected
    assert len(faults) == 7
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(InputError) as error:
        check_sensor(str(path))
    assert str(error.value).splitlines()[1:] == [f"- {fault}" for fault in faults]
    path.write_text(yaml.safe_dump(RADAR))
    assert check_sensor(str(path))["bands"] == ["VV"]


def test_the_range_of_a_sensor_fits_into_what_its_dtype_holds() -> None:
    assert definition_faults(RADAR | {"valid_range": [-400, 30]}) == [
        "int16 x 0.01 + 0 holds -327.68 .. 327.67, not all of -400 .. 30"
    ]


def test_backscatter_by_hand() -> None:
    sensor = load_sensor("sentinel1_rtc")
    np.testing.assert_allclose(sensor.to_physical(np.array([0.1, 1.0]), 1.0, 0.0, "power"), [-10, 0], atol=1e-6)
    np.testing.assert_allclose(sensor.to_physical(np.array([0.1, 10.0]), 1.0, 0.0, "amplitude"), [-20, 20], atol=1e-5)
    assert np.isnan(sensor.to_physical(np.array([0.0, -1.0]), 1.0, 0.0, "power")).all()


@pytest.mark.parametrize(
    ("baseline", "offset"), [("02.14", 0.0), ("03.01", 0.0), ("04.00", -0.1), ("05.09", -0.1), ("99.99", -0.1)]
)
def test_offset_follows_the_processing_baseline(baseline: str, offset: float) -> None:
    delivered = load_sensor("sentinel2_l2a").delivered
    assert delivered is not None
    assert delivered.offset_at(baseline) == offset
    with pytest.raises(InputError, match="processing baseline 'N4' is not a version"):
        delivered.offset_at("N4")


@pytest.mark.parametrize(
    ("sensor", "stem", "expected"),
    [
        ("sentinel2_l2a", "T33UUU_20180501T101031_B8A_20m", ("T33UUU_20180501T101031", "B8A")),
        ("sentinel2_l1c", "MSK_DETFOO_B02", ("MSK", "DETFOO_B02")),
        ("sentinel2_l2a", "T33UUU_20180501T101031_SCL_20m", ("T33UUU_20180501T101031", "SCL")),
        (
            "landsat_oli_l2",
            "LC08_L2SP_013032_20200101_20200107_02_T1_QA_PIXEL",
            ("LC08_L2SP_013032_20200101_20200107_02_T1", "QA_PIXEL"),
        ),
        ("landsat_oli_l2", "LC08_L2SP_013032_20200101_20200107_02_T1_SR_B4", ("LC08_L2SP_013032_20200101_20200107_02_T1", "SR_B4")),
        ("hls_l30", "HLS.L30.T10SEH.2021001T184523.v2.0.Fmask", ("HLS.L30.T10SEH.2021001T184523.v2.0", "Fmask")),
    ],
)
def test_names_end_in_a_band_a_mask_or_another_layer(sensor: str, stem: str, expected: tuple[str, str]) -> None:
    assert load_sensor(sensor).split_name(stem) == expected
