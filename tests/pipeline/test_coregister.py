import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from jobs.archives import verify
from jobs.coregister import coregister
from jobs.simulate import scan_folder
from pipeline.archive import open_archive
from pipeline.coregister import CoregisterConfig
from pipeline.errors import InputError
from pipeline.grid import Grid


def test_known_shifts_are_found(archive: str, planet: Path) -> None:
    """Against the planet's truth: every scene within half a pixel of 10 m, the median within 1.5 m."""
    found = json.loads((Path(archive) / "reports" / "coregister.json").read_text())["scenes"]
    truth = json.loads((planet / "truth" / "scenes.json").read_text())
    errors = [np.hypot(s["shift_x_m"] - truth[n]["shift_x_m"], s["shift_y_m"] - truth[n]["shift_y_m"]) for n, s in found.items()]
    assert len(errors) == len(truth) >= 6
    assert max(errors) < 5
    assert np.median(errors) < 1.5


def test_tiles_do_not_depend_on_the_shard_size(archive: str, planet: Path, tmp_path: Path, cluster: None) -> None:
    url = str(tmp_path / "archive")
    coregister(str(planet / "scenes"), url, Grid(shard_sites=3), CoregisterConfig(), None)
    small, large = open_archive(archive), open_archive(url)
    columns = ["site", "sensor", "scene"]
    both = small.catalog().merge(large.catalog(), on=columns, suffixes=("", "_large"))
    assert len(both) == len(small.catalog()) == len(large.catalog())
    for row in both.sample(40, random_state=0).itertuples():
        first = small.read(row.shard, row.sensor, np.array([row.row]))
        second = large.read(row.shard_large, row.sensor, np.array([row.row_large]))
        assert np.array_equal(first[1], second[1])
        assert np.array_equal(first[0], second[0])


def test_labels_are_the_majority_of_the_truth(archive: str, planet: Path) -> None:
    opened = open_archive(archive)
    catalog = opened.catalog()
    label = opened.labels["landcover"]
    assert label.classes[0] == "water"
    first = sorted((planet / "truth").glob("landcover_*.tif"))[0]
    with rasterio.open(first) as source:
        early = catalog[(catalog["sensor"] == "sentinel2_l2a") & (catalog["order"] == 0)]
        agreeing = []
        for row in early.itertuples():
            x, y = row.transform[2], row.transform[5]
            window = rasterio.windows.from_bounds(x, y - 640, x + 640, y, source.transform)
            classes = source.read(1, window=window)
            agreeing.append(np.bincount(classes.ravel()).argmax() == json.loads(row.labels)["landcover"])
    assert np.mean(agreeing) > 0.95


def test_again_writes_nothing_and_a_lost_part_only_itself(planet: Path, tmp_path: Path, cluster: None) -> None:
    url = tmp_path / "archive"

    def run() -> dict:
        return coregister(str(planet / "scenes"), str(url), Grid(shard_sites=3), CoregisterConfig(register=False), None)

    total = run()["shards_written"]
    assert total >= 4
    assert run()["shards_written"] == 0
    part = sorted((url / "catalog").glob("*.parquet"))[0]
    part.unlink()
    again = run()
    assert again["shards_written"] == 1
    assert part.exists()
    shard = next((url / "shards" / f"{part.stem}.zarr").rglob("c/0/0/0/0"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"{part.stem}: checksum differs"):
        verify(str(url))


def test_corrupt_scene_is_set_aside(planet: Path, tmp_path: Path, cluster: None) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(planet / "scenes", folder)
    scan_folder(str(folder), None, None, None)
    victim = sorted(folder.glob("sentinel1_grd*.tif"))[0]
    victim.write_bytes(victim.read_bytes()[:3000])
    done = coregister(str(folder), str(tmp_path / "archive"), Grid(shard_sites=3), CoregisterConfig(), None)
    assert list(done["refused"]) == [victim.stem]
    assert "cannot read" in done["refused"][victim.stem]
    assert done["tiles"]["sentinel2_l2a"] > 0
    assert victim.stem not in set(open_archive(str(tmp_path / "archive")).catalog()["scene"])
