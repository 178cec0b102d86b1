"""Of a growing archive all new samples are seen, a share of the old ones, and nothing of withheld scenes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job import TrainConfig
from cluster.run import Run
from cluster.seen_again import replay_of_run
from cluster.snapshot import counts_of_run
from pipeline.archive import Archive
from pipeline.errors import InputError
from pipeline.replay import Replay
from pipeline.samples import SampleSource
from pipeline.views import Single, TemporalPair
from tests.pipeline.test_archive import make_archive, make_tiles

SET = ("sentinel1_grd",)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """16 shards of 25 samples, each of a scene of its own."""
    made = make_archive(tmp_path / "a")
    for number in range(16):
        tiles = [replace(tile, scene=f"{number}/{i}") for i, tile in enumerate(make_tiles(25, number))]
        made.publish(f"s_{number:02}", "train", tiles, "inputs")
    return made


def test_a_share_of_old_samples_is_seen_again(archive: Archive, tmp_path: Path) -> None:
    new = {f"3/{i}" for i in range(25)} | {"12/0"}
    (tmp_path / "scenes.json").write_text(json.dumps({"new": sorted(new), "withheld": ["5/1", "5/2"]}))
    config = TrainConfig(view=Single(), new_scenes=str(tmp_path / "scenes.json"), replay=0.75, seed=1)
    run, source = Run(str(tmp_path / "run"), "pretrain"), SampleSource(archive, config.view)
    replay = replay_of_run(run, source, config)
    assert replay == replay_of_run(run, source, config)
    assert replay is not None
    assert replay.keep == pytest.approx(26 * 3 / (400 - 2 - 26))
    seen = replace(source, replay=replay)
    shards, sizes = counts_of_run(run, seen, ())[SET]
    assert len(seen.of_shard("s_03", SET)) == 25
    assert [len(seen.of_shard(shard, SET)) for shard in shards] == sizes.tolist()
    assert 54 <= sizes.sum() - 26 <= 102  # 78 are drawn, give or take three standard deviations
    others = replace(source, replay=replace(replay, seed=2))
    assert any(seen.of_shard(s, SET).rows[SET[0]].tolist() != others.of_shard(s, SET).rows[SET[0]].tolist() for s in shards)
    everything = replace(source, replay=replace(replay, keep=1.0))
    assert [len(everything.of_shard(shard, SET)) for shard in ("s_04", "s_05")] == [25, 23]
    assert len(replace(source, replay=replace(replay, keep=0.0)).of_shard("s_12", SET)) == 1


def test_a_pair_is_new_if_one_of_its_dates_is(tmp_path: Path) -> None:
    made = make_archive(tmp_path / "a")
    tiles = make_tiles(6)
    site = tiles[0].site
    dates = [replace(tile, site=site, scene=f"date {i}", order=i) for i, tile in enumerate(tiles)]
    made.publish("s_0", "train", dates, "inputs")
    view = TemporalPair(min_gap_days=0)
    pairs = SampleSource(made, view).of_shard("s_0", SET).rows[SET[0]].tolist()
    none_old = SampleSource(made, view, replay=Replay(frozenset({"date 2"}), keep=0.0))
    row = int(made.catalog().set_index("scene").loc["date 2", "row"])
    assert none_old.of_shard("s_0", SET).rows[SET[0]].tolist() == [pair for pair in pairs if row in pair] != []


def test_what_cannot_be_seen_is_said(archive: Archive, tmp_path: Path) -> None:
    source, run = SampleSource(archive, Single()), Run(str(tmp_path / "run"), "pretrain")
    for content, message in (
        ('{"new": ["x"]}', "no Single training sample of '.+' shows one of the 1 scenes that '.+' names as new"),
        ('{"new": [], "withold": []}', "has 'withold'"),
        ("[", "cannot be used"),
    ):
        (tmp_path / "scenes.json").write_text(content)
        with pytest.raises(InputError, match=message):
            replay_of_run(run, source, TrainConfig(view=Single(), new_scenes=str(tmp_path / "scenes.json")))
    with pytest.raises(InputError, match=r"no file '/no/scenes.json'; expected JSON such as"):
        replay_of_run(run, source, TrainConfig(new_scenes="/no/scenes.json"))
    with pytest.raises(InputError, match=r"replay is 1, expected \[0, 1\)"):
        TrainConfig(replay=1.0)
