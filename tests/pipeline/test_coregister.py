import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import box

from jobs.archives import verify
from jobs.coregister import coregister
from jobs.registration_report import read_reports
from jobs.simulate import scan_folder
from pipeline.alignment import alignment_from_dict
from pipeline.archive import open_archive
from pipeline.coregister import CoregisterConfig, references
from pipeline.errors import InputError
from pipeline.grid import Grid, Site
from pipeline.scene import Scene
from pipeline.sensors import load_sensor
from pipeline.simulation.config import CHANGE_DAY
from pipeline.stac import read_scenes


def test_known_shifts_are_found(archive: str, planet: Path) -> None:
    """Against the planet's truth: every scene within a fifth of a pixel of 10 m, the median within 0.5 m."""
    found = read_reports(open_archive(archive))["scenes"]
    truth = json.loads((planet / "truth" / "scenes.json").read_text())
    errors = [np.hypot(s["shift_x_m"] - truth[n]["shift_x_m"], s["shift_y_m"] - truth[n]["shift_y_m"]) for n, s in found.items()]
    assert len(errors) == len(truth) >= 6
    assert max(errors) < 2
    assert np.median(errors) < 0.5


def content(url: str) -> dict[tuple[str, str, str], bytes]:
    """Return the SHA-256 of every tile's pixels and validity, by site, sensor and scene."""
    opened, found = open_archive(url), {}
    for (shard, sensor), rows in opened.catalog().groupby(["shard", "sensor"]):
        pixels, is_valid = opened.read(shard, sensor, rows["row"].to_numpy())
        for row, *arrays in zip(rows.itertuples(), pixels, is_valid):
            found[row.site, sensor, row.scene] = hashlib.sha256(b"".join(a.tobytes() for a in arrays)).digest()
    return found


@pytest.fixture(scope="module")
def archive_of_larger_shards(planet: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("larger") / "archive")
    coregister(str(planet / "scenes"), url, Grid(shard_sites=3), CoregisterConfig(), None)
    return url


def test_tiles_do_not_depend_on_the_shard_size(archive: str, archive_of_larger_shards: str) -> None:
    tiles = content(archive)
    assert len(tiles) == len(open_archive(archive).catalog())
    assert content(archive_of_larger_shards) == tiles


def test_archive_does_not_depend_on_the_number_of_workers(planet: Path, archive_of_larger_shards: str, tmp_path: Path) -> None:
    """Those of the session's cluster are one for each processor of the machine."""
    script = (
        "import sys, ray; ray.init(address='local', num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False)\n"
        "from jobs.coregister import *\n"
        "print(coregister(sys.argv[2], sys.argv[3], Grid(shard_sites=3), CoregisterConfig(), None)['digest'])"
    )
    workers = "4" if os.cpu_count() == 1 else "1"
    command = [sys.executable, "-c", script, workers, str(planet / "scenes"), str(tmp_path / "archive")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == open_archive(archive_of_larger_shards).digest()


def test_references_are_those_of_all_pairs_compared() -> None:
    """The index of footprints against the rule written out: 150 scenes of two sensors, on a grid of places and beside it."""
    rng, day = np.random.default_rng(0), datetime(2020, 1, 1, tzinfo=UTC)
    scenes = []
    for number in range(150):
        sensor = load_sensor("sentinel1_grd" if number % 3 == 0 else "sentinel2_l2a")
        x, y = (rng.integers(0, 4, 2) + (rng.random(2) if number % 2 else 0)).tolist()
        time = day + timedelta(days=int(rng.integers(0, 60)))
        scenes.append(Scene(f"s{number}", sensor, time, (), None, box(x, y, x + 1, y + 1, "EPSG:4326")))
    held = sorted((s for s in scenes if s.sensor.name == "sentinel2_l2a"), key=lambda s: (s.time, s.id))

    def share(other: Scene, scene: Scene) -> float:
        return (other.footprint & scene.footprint).area / scene.footprint.area

    for scene_id, found in references(scenes, "sentinel2_l2a").items():
        scene = scenes[int(scene_id[1:])]
        over = [other for other in held if share(other, scene) > 0]
        if scene in held:
            wanted = next((other for other in over if held.index(other) < held.index(scene)), None)
        else:
            wanted = max(over, key=lambda o: (round(share(o, scene), 1), -abs(o.time - scene.time)), default=None)
        assert found is wanted


def test_labels_are_the_majority_of_the_truth_at_that_time(archive: str, planet: Path) -> None:
    """Counted over all 10 m cells; the job counts a quarter of them, so it may err only where two classes nearly tie."""
    opened = open_archive(archive)
    catalog = opened.catalog()
    assert opened.labels["landcover"].classes[0] == "water"
    epochs = []
    for path in sorted((planet / "truth").glob("landcover_*.tif")):
        with rasterio.open(path) as source:
            epochs.append((source.read(1), source.transform))
    rows = catalog[catalog["sensor"] == "sentinel2_l2a"]
    seen, differing = set(), 0
    for row in rows.itertuples():
        epoch = int(row.time.dayofyear >= CHANGE_DAY)
        classes, transform = epochs[epoch]
        column, line = (round(v) for v in ~transform * (row.transform[2], row.transform[5]))
        shares = np.bincount(classes[line : line + 64, column : column + 64].ravel(), minlength=11) / 64**2
        given = int(json.loads(row.labels)["landcover"])
        assert shares[given] > shares.max() - 0.02
        seen.add(epoch)
        differing += shares.argmax() != given
    assert seen == {0, 1}
    assert differing < 0.05 * len(rows)


def test_tile_is_the_scene_read_once_on_its_site(archive: str, planet: Path) -> None:
    """What is archived equals one resampling of the raw file, by the recorded displacement, onto the tile's recorded transform."""
    opened = open_archive(archive)
    scenes = {scene.id: scene for scene in read_scenes(str(planet / "scenes"))[0]}
    catalog = opened.catalog()
    report = read_reports(open_archive(archive))["scenes"]
    chosen = catalog[catalog["shift_x_m"] != 0].groupby("scene").sample(2, random_state=0)
    assert chosen["sensor"].nunique() == 4
    for row in chosen.itertuples():
        sensor, scene = opened.sensors[row.sensor], scenes[row.scene]
        geobox = GeoBox(sensor.tile_shape(640), Affine(*row.transform), row.crs)
        alignment = alignment_from_dict(report[row.scene]["displacement"])
        middle = geobox.extent.centroid.coords[0]
        assert alignment.at(*middle, row.crs).shift_m == pytest.approx((row.shift_x_m, row.shift_y_m), abs=1e-3)
        values, has_data = scene.read(geobox, sensor.band_names, alignment)
        is_clear = has_data & ~scene.read_masks(geobox, alignment)[0]
        stored, is_valid = opened.read(row.shard, row.sensor, np.array([row.row]))
        assert np.array_equal(is_valid[0] > 0, is_clear)
        assert np.array_equal(stored[0], np.where(is_clear, sensor.to_stored(values), 0))
        assert row.valid_fraction == pytest.approx(is_clear.mean())


def test_dates_of_a_site_are_ranked_and_split_with_their_shard(archive: str) -> None:
    catalog = open_archive(archive).catalog()
    for _, group in catalog.groupby(["site", "sensor"]):
        assert group.sort_values(["time", "scene"])["order"].tolist() == list(range(len(group)))
    assert (catalog.groupby("site")["split"].nunique() == 1).all()
    for shard, split in catalog.drop_duplicates("shard")[["shard", "split"]].itertuples(index=False):
        zone, column, row = shard.split("_")
        assert split == Grid(shard_sites=1).split_of(Site(zone, int(column), int(row)))


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


def test_corrupt_reference_does_not_take_the_others_with_it(planet: Path, tmp_path: Path, cluster: None) -> None:
    """All scenes are compared with the first Sentinel-2 one; without it they stay where they are and say so."""
    folder = tmp_path / "scenes"
    shutil.copytree(planet / "scenes", folder)
    scan_folder(str(folder), None, None, None)
    victim = min(path for path in folder.glob("sentinel2*.tif") if not path.stem.endswith("_cloud"))
    victim.write_bytes(victim.read_bytes()[:3000])
    done = coregister(str(folder), str(tmp_path / "archive"), Grid(shard_sites=6), CoregisterConfig(), None)
    assert list(done["refused"]) == [victim.stem]
    catalog = open_archive(str(tmp_path / "archive")).catalog()
    assert len(set(catalog["scene"])) == 7
    assert (catalog["confidence"] == 0).all()
    assert catalog["reason"].str.contains(f"its reference {victim.stem} cannot be read").all()


def test_repaired_scene_is_taken_up_by_the_next_run(planet: Path, tmp_path: Path, cluster: None) -> None:
    folder, url = tmp_path / "scenes", str(tmp_path / "archive")
    shutil.copytree(planet / "scenes", folder)
    scan_folder(str(folder), None, None, None)
    victim = sorted(folder.glob("sentinel1_grd*.tif"))[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:3000])
    config = CoregisterConfig(register=False)
    assert list(coregister(str(folder), url, Grid(shard_sites=6), config, None)["refused"]) == [victim.stem]
    victim.write_bytes(whole)
    assert coregister(str(folder), url, Grid(shard_sites=6), config, None)["refused"] == {}
    assert victim.stem in set(open_archive(url).catalog()["scene"])


def test_new_scenes_alone_give_the_archive_of_all_at_once(archive: str, planet: Path, tmp_path: Path, cluster: None) -> None:
    """Two jobs, the second given the new scenes only: old scenes keep their place, the tiles are those of one job."""
    content = json.loads((planet / "scenes" / "scenes.json").read_text())
    features, url = sorted(content["features"], key=lambda f: f["properties"]["datetime"]), str(tmp_path / "archive")
    kept: dict[str, Any] = {}
    for number, part in enumerate((features[: len(features) // 2], features[len(features) // 2 :])):
        catalog = planet / "scenes" / f"part_{number}.json"
        catalog.write_text(json.dumps({**content, "features": part}))

        def run(catalog: Path = catalog) -> dict[str, Any]:
            config = CoregisterConfig(reference="sentinel2_l2a")
            return coregister(str(catalog), url, Grid(shard_sites=1), config, str(planet / "truth"))

        assert run()["shards_written"] > 0
        records = open_archive(url).scene_records()
        assert records.items() >= kept.items()
        kept = records
        assert run()["shards_written"] == 0
        catalog.unlink()
    at_once, in_two = (open_archive(u).catalog().set_index(["site", "sensor", "order"]).sort_index() for u in (archive, url))
    assert at_once.index.equals(in_two.index)
    assert (at_once["scene"] == in_two["scene"]).all()
    sensors = at_once.index.get_level_values("sensor")
    same = (at_once["shift_x_m"] == in_two["shift_x_m"]) & (at_once["shift_y_m"] == in_two["shift_y_m"])
    # Scenes of other sensors than the reference follow the one nearest in time that was there when they came.
    assert same[sensors == "sentinel2_l2a"].all()
    assert np.hypot(at_once["shift_x_m"] - in_two["shift_x_m"], at_once["shift_y_m"] - in_two["shift_y_m"]).max() < 2
