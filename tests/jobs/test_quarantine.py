"""What cannot be used, through the whole of scan and coregister: named with its reason while the rest becomes tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine

from jobs.archives import verify
from jobs.coregister import coregister
from jobs.simulate import scan_folder
from pipeline.archive import open_archive
from pipeline.coregister import CoregisterConfig
from pipeline.errors import InputError
from pipeline.grid import Grid
from tests.rasters import NORTH, RADAR_TAGS, counts, write

BAD_FILES = {
    "empty.tif": "cannot read",
    "header_only.tif": "cannot read",
    "nan_transform.tif": "places no pixel",
    "no_crs.tif": "has no CRS",
    "three_bands.tif": "has 3 bands without known names",
    "S2A_MSIL2A_20170617T113321_B02.tif": "different dtypes",
    "S2A_MSIL2A_20170617T113321_B03.tif": "different dtypes",
}
BAD_ITEMS = {
    "outside": ("leads out of the catalog's folder", {"href": "../../secret.tif"}),
    "timeless": ("has no datetime", {"datetime": None}),
    "gone": ("cannot read", {"href": "gone.tif"}),
    "cut_off": ("cannot read", {"href": "cut_off.tif"}),
    "other_bands": ("no asset has a band", {"bands": [{"name": "HH"}]}),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good scenes of one place, and one file or item of each kind of fault."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in (0, 1):
        write(folder / f"good_{seed}.tif", counts(seed, size=128), tags=RADAR_TAGS, names=("VV", "VH"))
    (folder / "empty.tif").write_bytes(b"")
    content = write(folder / "header_only.tif", counts(size=128), tags=RADAR_TAGS).read_bytes()
    (folder / "header_only.tif").write_bytes(content[:2000])
    write(folder / "nan_transform.tif", counts(), tags=RADAR_TAGS, transform=Affine(10, 0, np.nan, 0, -10, NORTH))
    write(folder / "no_crs.tif", counts(), tags=RADAR_TAGS, crs=None)
    write(folder / "three_bands.tif", counts(bands=3), tags=RADAR_TAGS)
    for band, dtype in (("B02", np.uint16), ("B03", np.float32)):
        write(folder / f"S2A_MSIL2A_20170617T113321_{band}.tif", np.ones((1, 64, 64), dtype))
    return folder


def test_scan_and_coregister_name_each_fault_and_go_on(scenes: Path, cluster: None, tmp_path: Path) -> None:
    done = scan_folder(str(scenes), None, None, None)
    assert done["scenes"] == 2
    assert set(done["refused"]) == {str(scenes / name) for name in BAD_FILES}
    for name, reason in BAD_FILES.items():
        assert reason in done["refused"][str(scenes / name)]

    content = json.loads((scenes / "scenes.json").read_text())
    for name, (_, change) in BAD_ITEMS.items():
        item = json.loads(json.dumps(content["features"][0])) | {"id": name}
        (asset,) = item["assets"].values()
        item["properties"] |= {k: v for k, v in change.items() if k == "datetime"}
        asset |= {k: v for k, v in change.items() if k != "datetime"}
        content["features"].append(item)
    (scenes / "faulty.json").write_text(json.dumps(content))
    whole = (scenes / "good_0.tif").read_bytes()
    (scenes / "cut_off.tif").write_bytes(whole[: len(whole) // 3])
    url = str(tmp_path / "archive")
    done = coregister(str(scenes / "faulty.json"), url, Grid(shard_sites=2), CoregisterConfig(), None)
    assert set(done["refused"]) == set(BAD_ITEMS)
    for name, (reason, _) in BAD_ITEMS.items():
        assert reason in done["refused"][name]
    archive = open_archive(url)
    assert set(archive.catalog()["scene"]) == {"good_0", "good_1"}
    assert verify(url)["faults"] == 0


def test_nothing_usable_is_one_line_that_says_why(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.tif").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 raster files under .* can be used: .*empty.tif: cannot read"):
        scan_folder(str(tmp_path), None, None, None)
