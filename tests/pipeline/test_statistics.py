import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from jobs.archives import write_statistics
from pipeline.sensors import load_sensor
from pipeline.statistics import NUM_BINS, quantiles, read_table, statistics_of, summarise, write_table
from tests.pipeline.test_archive import make_archive, make_tiles


def test_merged_statistics_equal_numpy_over_all_valid_pixels(tmp_path: Path) -> None:
    """Shards of very different means; one tile and one split of no account: no valid pixel, not train."""
    archive, tiles = make_archive(tmp_path / "a"), make_tiles(40)
    sensor = archive.sensors["sentinel1_grd"]
    tiles[7] = replace(tiles[7], is_valid=np.zeros_like(tiles[7].is_valid))
    tiles[30:] = [replace(tile, pixels=tile.pixels - 900) for tile in tiles[30:]]
    for shard, split, part in (("s_0", "train", tiles[:30]), ("s_1", "train", tiles[30:]), ("s_2", "test", make_tiles(9, 3))):
        archive.publish(shard, split, part, "i")
    write_statistics(archive)
    found = archive.read_statistics()
    assert found["archive_digest"] == archive.digest()
    found = found["sensors"]["sentinel1_grd"]
    pixels = np.concatenate([t.pixels[:, t.is_valid] for t in tiles], axis=1) * 0.01
    assert found["count"] == pixels.shape[1]
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["std"], pixels.std(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["min"], pixels.min(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["max"], pixels.max(axis=1), rtol=1e-6)
    within = np.sum([t.pixels[:, t.is_valid].var(axis=1) * t.is_valid.sum() for t in tiles if t.is_valid.any()], axis=0)
    np.testing.assert_allclose(found["std_within_tile"], np.sqrt(within / pixels.shape[1]) * 0.01, rtol=1e-6)
    bin_db = (sensor.valid_range[1] - sensor.valid_range[0]) / NUM_BINS
    for name, percent in (("percentile_2", 2), ("median", 50), ("percentile_98", 98)):
        np.testing.assert_allclose(found[name], np.percentile(pixels, percent, axis=1), atol=1.01 * bin_db)


def test_parts_merge_to_the_whole_in_any_grouping_and_survive_the_file() -> None:
    archive_tiles = [(t.pixels, t.is_valid) for t in make_tiles(12)]
    sensor = load_sensor("sentinel1_grd")
    whole = summarise(statistics_of(sensor, archive_tiles), sensor)
    rng = np.random.default_rng(2)
    for _ in range(5):
        cuts = sorted(rng.integers(13, size=2))
        parts = [
            statistics_of(sensor, part)
            for part in (archive_tiles[: cuts[0]], archive_tiles[cuts[0] : cuts[1]], archive_tiles[cuts[1] :])
        ]
        again = [read_table(write_table({"x": part}))["x"] for part in parts]
        merged = summarise(again[2].merge(again[0]).merge(again[1]), sensor)
        for key in whole:
            if key != "bands":
                np.testing.assert_allclose(merged[key], whole[key], rtol=1e-12)
    assert json.dumps(whole)


def test_values_outside_the_range_stay_inside_the_quantiles() -> None:
    sensor = load_sensor("sentinel1_grd").select(("VV",))
    stored = np.array([[[-9000, -2000, -1000, 9000]]], np.int16)  # -90, -20, -10 and 90 dB, of -50 ... 30
    found = statistics_of(sensor, [(stored, np.ones((1, 4), bool))])
    assert (found.low.tolist(), found.high.tolist()) == ([-90.0], [90.0])
    low, middle, high = quantiles(found, sensor.valid_range, (0.0, 0.5, 1.0))[:, 0]
    assert -50 <= low <= middle <= high <= 30
    assert -20.05 < middle < -9.95  # any value between the two in the middle halves them
