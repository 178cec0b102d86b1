"""Real scenes and chips through the same jobs; skipped, saying so, where the samples are missing."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from jobs.archives import verify
from jobs.coregister import coregister
from jobs.ingest import ingest
from jobs.simulate import scan_folder
from pipeline.archive import open_archive
from pipeline.coregister import CoregisterConfig
from pipeline.grid import Grid
from pipeline.registration import MIN_CONFIDENCE

ONE_BAND = {
    "name": "sentinel2_10m", "sensing": "passive", "quantity": "toa_reflectance", "unit": "1", "gsd_m": 10, "dtype": "uint16",
    "scale": 0.0001, "valid_range": [0, 2], "bands": [{"name": "band", "gsd_m": 10, "wavelength_nm": 664.6}],
}  # fmt: skip


def test_two_sentinel2_scenes_near_berlin(shared_data: Path, tmp_path: Path, cluster: None) -> None:
    """51 windows of the pair agree: `tgt` moved by 1.9 rows (south) and -0.7 columns (west) matches `ref`."""
    sensor = tmp_path / "sensor.yaml"
    sensor.write_text(yaml.safe_dump(ONE_BAND))
    catalog, url = str(tmp_path / "scenes.json"), str(tmp_path / "archive")
    scan_folder(str(shared_data / "coreg_s2_s2"), str(sensor), None, catalog)
    done = coregister(catalog, url, Grid(shard_sites=16), CoregisterConfig(), None)
    assert done["refused"] == {}
    archive = open_archive(url)
    moved = archive.catalog().drop_duplicates("scene").set_index("scene")
    target, reference = sorted(moved.index, key=lambda name: not name.startswith("tgt"))
    # The earlier scene holds, so `ref` moves onto `tgt`: opposite to the pair's own words, 1.9 rows up and 0.7 columns right.
    assert moved.loc[target, "reason"] == "reference"
    assert moved.loc[reference, "shift_x_m"] == pytest.approx(7, abs=3)
    assert moved.loc[reference, "shift_y_m"] == pytest.approx(19, abs=3)
    assert moved.loc[reference, "confidence"] >= MIN_CONFIDENCE
    opened = xr.open_zarr(archive.shard_url(archive.published()[0]), group="sentinel2_10m", consolidated=False)
    assert opened["pixels"].dims == ("tile", "band", "y", "x")
    assert 0.01 < float(opened["pixels"].mean()) < 0.6
    assert verify(url)["faults"] == 0


@pytest.mark.parametrize(("folder", "time", "pairs"), [("bigearthnet", None, 2), ("sen12mscr", "2018-05-01", 1)])
def test_radar_and_optical_scenes_meet_on_one_grid(
    folder: str, time: str | None, pairs: int, shared_data: Path, tmp_path: Path, cluster: None
) -> None:
    catalog, url = str(tmp_path / "scenes.json"), str(tmp_path / "archive")
    scan_folder(str(shared_data / folder), None, time, catalog)
    done = coregister(catalog, url, Grid(shard_sites=2), CoregisterConfig(), None)
    assert done["refused"] == {}
    rows = open_archive(url).catalog()
    both = rows.groupby("site")["sensor"].agg(set).map(lambda s: len(s) == 2 and "sentinel1_grd" in s)
    assert both.sum() >= pairs
    archive = open_archive(url)
    shard = rows[rows["site"] == both.index[both][0]]["shard"].iloc[0]
    opened = xr.open_zarr(archive.shard_url(shard), group="sentinel1_grd", consolidated=False)
    values = opened["pixels"].sel(band="VV").values[opened["valid"].values]
    assert -30 < np.median(values) < 0


def test_three_layouts_in_one_archive(shared_data: Path, tmp_path: Path, cluster: None) -> None:
    url = str(tmp_path / "archive")
    for layout, folder in (("oscd", "oscd"), ("ombria", "ombria/event_guyana"), ("s2_patches", "s2_l2a_patches")):
        ingest(layout, str(shared_data / folder), url, Grid())
    archive = open_archive(url)
    catalog = archive.catalog()
    assert set(archive.labels) == {"changed", "changed_fraction", "change", "flooded_fraction", "flooded"}
    assert catalog["sensor"].value_counts().to_dict() == {
        "ombria_optical": 960, "ombria_sar": 960, "sentinel2_l1c": 1262, "sentinel2_l2a": 168,
    }  # fmt: skip
    places = catalog["site"].str.rsplit("/", n=1).str[0]
    assert (catalog.groupby(places)["split"].nunique() == 1).all()
    pisa = catalog[catalog["scene"] == "pisa/imgs_2"].iloc[0]
    assert abs(pisa["shift_y_m"]) == pytest.approx(9.5, abs=2)
    assert verify(url)["faults"] == 0
