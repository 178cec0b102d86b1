"""What a run trains on is fixed when it begins."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.run import Run
from cluster.snapshot import count, counts_of_run, plan_of
from pipeline.archive import Archive
from pipeline.errors import InputError
from pipeline.samples import SampleSource
from pipeline.views import CrossSensor, SeasonPair, Single
from tests.pipeline.test_archive import make_archive, make_tiles

SET = ("sentinel1_grd",)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    made = make_archive(tmp_path / "a")
    made.publish("s_0", "train", make_tiles(5), "inputs")
    made.publish("s_1", "train", make_tiles(7, 1), "inputs")
    made.publish("s_2", "val", make_tiles(9, 2), "inputs")
    return made


def test_a_run_keeps_its_plan_while_the_archive_grows(archive: Archive, tmp_path: Path) -> None:
    run, source = Run(str(tmp_path / "run"), "pretrain"), SampleSource(archive, Single())
    before = counts_of_run(run, source, ())
    assert {s: (shards, sizes.tolist()) for s, (shards, sizes) in before.items()} == {SET: (["s_0", "s_1"], [5, 7])}
    archive.publish("s_3", "train", make_tiles(20, 3), "inputs")
    again = counts_of_run(run, SampleSource(archive, Single()), ())
    plans = [plan_of(counts, 2, 3, 2, seed=0) for counts in (before, again)]
    for index in range(6):
        batches = [plan.sets[0].micro_batch(1, index) for plan in plans]
        assert np.array_equal(*batches)
    assert counts_of_run(Run(str(tmp_path / "new"), "pretrain"), source, ())[SET][1].tolist() == [5, 7, 20]


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, [900, 100]), (0.5, [750, 250]), (0.0, [500, 500])])
def test_rare_sensor_sets_are_seen_more_often_than_in_proportion(exponent: float, expected: list[int]) -> None:
    counts = {("often",): (["a"], np.array([900])), ("rare",): (["a"], np.array([100]))}
    assert plan_of(counts, 2, 3, 2, seed=0, share_exponent=exponent).taken(1000) == expected


def test_a_shard_is_looked_up_as_it_was_first_seen(archive: Archive) -> None:
    """Within one source; another source looks again."""
    source = SampleSource(archive, Single())
    assert len(source.of_shard("s_0", SET)) == 5
    archive.publish("s_0", "train", make_tiles(6), "other inputs")
    assert len(source.of_shard("s_0", SET)) == 5
    assert len(SampleSource(archive, Single()).of_shard("s_0", SET)) == 6
    assert len(replace(source, splits=("val", "test")).of_shard("s_2", SET)) == 9


def test_a_view_that_finds_nothing_says_so(archive: Archive) -> None:
    with pytest.raises(InputError, match=r"the train split of '.+' has no SeasonPair sample; add ground or dates until it has"):
        count(SampleSource(archive, SeasonPair()), ())
    with pytest.raises(InputError, match=r"no site in the train split of '.+' has what a CrossSensor of sentinel1_grd, dsm takes"):
        count(SampleSource(archive, CrossSensor()), (("sentinel1_grd", "dsm"),))
