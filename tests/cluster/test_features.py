"""What a teacher made of tiles earlier teaches as the teacher itself does, and is not taken for that of other tiles."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.batches import sensor_specs, to_batch
from cluster.embedding import maps_of_shard
from jobs.distill import _features, model_digest
from jobs.recipes.student import student_tiny
from models.encoder import Encoder, EncoderConfig
from models.objectives.distillation import Distillation, DistillationConfig
from models.swin import SwinConfig
from pipeline.archive import Archive, open_archive
from pipeline.augment import AugmentConfig
from pipeline.errors import InputError
from pipeline.features import features_url, missing, write_about, write_features
from pipeline.plan import Plan, SetPlan
from pipeline.samples import SampleSource
from pipeline.stream import Stream, StreamConfig
from pipeline.views import Single

NAME = "sentinel2_l2a"


@pytest.fixture(scope="module")
def kept(archive: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Archive, Encoder, str]:
    """A copy of the archive with a teacher's features, the teacher, and its folder."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(archive, folder / "archive")
    opened = open_archive(str(folder / "archive"))
    specs = tuple(spec for spec in sensor_specs(opened) if spec.name == NAME)
    teacher = Encoder(
        EncoderConfig(SwinConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 2)), 40.0, specs), torch.Generator().manual_seed(0)
    )
    teacher.save(folder / "model")
    url = features_url(opened, model_digest(str(folder / "model")))
    write_about(url, "model", [NAME], 2)
    for shard in missing(url, opened):
        rows = opened.rows(shard)
        rows = rows[rows["sensor"] == NAME]
        write_features(url, opened, shard, {NAME: maps_of_shard(opened, teacher.eval(), shard, NAME, rows["row"].to_numpy())})
    assert missing(url, opened) == []
    return opened, teacher, str(folder / "model")


def batches(archive: Archive, url: str) -> list[Any]:
    archive.features_url = url
    source = SampleSource(archive, Single())
    shards, sizes = source.count([(NAME,)])[(NAME,)]
    plan = Plan([SetPlan((NAME,), shards, sizes, 1, 6, 2, seed=0)], [1.0])
    config = StreamConfig(decode="process", augment=AugmentConfig(symmetries=False))
    return [to_batch(micro) for (micro,) in Stream(source, plan, 0, 1, 0, 3, config)]


def test_features_that_are_read_teach_as_the_teacher_does(kept: tuple[Archive, Encoder, str]) -> None:
    archive, teacher, model = kept
    student = EncoderConfig(SwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 1)), 40.0, teacher.config.sensors)
    objective = Distillation(DistillationConfig(student, relation_weight=1.0), teacher, torch.Generator().manual_seed(1)).eval()
    nobody = Encoder(teacher.config, torch.Generator().manual_seed(9))
    alone = Distillation(objective.config, nobody, torch.Generator().manual_seed(1)).eval()
    url = features_url(archive, model_digest(model))
    for live, read in zip(batches(archive, ""), batches(archive, url), strict=True):
        assert torch.equal(live.tiles[NAME].pixels, read.tiles[NAME].pixels)
        assert [part.shape[-1] for part in read.features[NAME]] == [16, 32]
        wanted = objective(live, torch.Generator())
        assert alone(read, torch.Generator())["loss"].item() == pytest.approx(wanted["loss"].item(), rel=2e-3)


def test_features_of_other_tiles_or_of_changed_ones_are_refused(kept: tuple[Archive, Encoder, str], tmp_path: Path) -> None:
    archive, _, model = kept
    with pytest.raises(InputError, match=r"tiles are turned.*--symmetries False"):
        _features(student_tiny(), model, archive.url)
    plain = student_tiny_without_symmetries()
    assert _features(plain, model, archive.url) == features_url(archive, model_digest(model))
    url = Path(features_url(archive, model_digest(model)))
    first = next(path for path in sorted(url.glob("*.json")) if path.name != "features.json")
    first.write_text('{"shard_digest": "of before"}')
    with pytest.raises(InputError, match="has no features of 1 shards"):
        _features(plain, model, archive.url)
    other = tmp_path / "other"
    Encoder(Encoder.load(model).config, torch.Generator().manual_seed(7)).save(other)
    with pytest.raises(InputError, match="has no features of the teacher"):
        _features(plain, str(other), archive.url)


def student_tiny_without_symmetries() -> Any:
    recipe = student_tiny()
    stream = replace(recipe.train.stream, augment=AugmentConfig(symmetries=False))
    return replace(recipe, train=replace(recipe.train, stream=stream))
