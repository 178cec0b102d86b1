"""Weights of a checkpoint, taken any number of times in one process, and begun with to the last bit."""

from pathlib import Path

import pytest
import torch

from cluster.alone import alone
from cluster.consolidate import consolidate
from cluster.job import Job
from cluster.optimiser import OptimiserConfig
from cluster.start import begin, load_weights, require_fit, sensors_of, write_start
from cluster.zero import ZeroEngine
from jobs.archives import write_statistics
from jobs.arguments import parse_recipe
from models.encoder import Encoder
from pipeline import storage
from pipeline.archive import create_archive, open_archive
from pipeline.errors import InputError
from pipeline.sensors import load_sensor
from tests.cluster.test_zero import Small
from tests.pipeline.test_archive import GRID, make_tiles


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """A few tiles of two sensors."""
    sensors = {name: load_sensor(name) for name in ("sentinel1_grd", "dsm")}
    made = create_archive(str(tmp_path / "archive"), GRID, sensors, {})
    tiles = [tile for name in sensors for tile in make_tiles(3, sensor=name)]
    made.publish("s_0", "train", tiles, "inputs")
    write_statistics(made)
    return made.url


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("bf16", [True, False])
def test_masters_begin_with_all_their_digits(stage: int, bf16: bool) -> None:
    if stage == 3 and not bf16:
        pytest.skip("gathered alike in bf16")
    weights = Small().state_dict()
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in weights.values())
    with alone():
        engine = ZeroEngine(Small(), OptimiserConfig(zero_stage=stage, bf16=bf16), 1, 8, 1)
        engine.begin_with(weights)
        found = engine.gather_master_weights()
    trained = [name for name, parameter in Small().named_parameters() if parameter.requires_grad]
    assert all(torch.equal(found[name], weights[name]) for name in trained)


def test_a_checkpoint_is_made_whole_twice_in_one_process(archive: str, tmp_path: Path) -> None:
    recipe = parse_recipe("pretrain", "mae_tiny", ["--num-steps", "4"])
    job = Job(str(tmp_path / "run"), archive, "pretrain", recipe.train, recipe.build, {})
    specs = sensors_of(job, open_archive(archive))
    with alone():
        settings = recipe.train
        engine = ZeroEngine(
            recipe.build(specs, torch.Generator().manual_seed(0)), settings.optimiser, 4, settings.batch_size, settings.lanes
        )
        (tmp_path / "checkpoint").mkdir()
        engine.save(str(tmp_path / "checkpoint"), 3)
        saved = engine.gather_master_weights()
    for _ in range(2):
        trained, step = consolidate(job, str(tmp_path / "checkpoint"))
        assert step == 3
        assert all(torch.equal(tensor, saved[name]) for name, tensor in trained.state_dict().items())


def test_a_start_keeps_what_its_encoder_knows_of_sensors(archive: str, tmp_path: Path) -> None:
    recipe, opened = parse_recipe("pretrain", "mae_tiny", []), open_archive(archive)
    job = Job(str(tmp_path / "run"), archive, "pretrain", recipe.train, recipe.build, {})
    specs = sensors_of(job, opened)
    other = [type(s)(**{**vars(s), "mean": tuple(m + 1 for m in s.mean)}) for s in specs if s.name != "dsm"]
    objective = recipe.build(tuple(other), torch.Generator().manual_seed(1))
    write_start(str(tmp_path / "start"), objective.encoder, objective.state_dict(), "elsewhere")
    begun = Job(**{**vars(job), "start": str(tmp_path / "start")})
    found = {spec.name: spec for spec in sensors_of(begun, opened)}
    drawn = {spec.name: spec for spec in specs}
    assert found["sentinel1_grd"].mean == tuple(m + 1 for m in drawn["sentinel1_grd"].mean)
    assert found["dsm"] == drawn["dsm"]
    weights, fresh = load_weights(begun.start), recipe.build(tuple(found.values()), torch.Generator().manual_seed(2))
    facts = require_fit(fresh, weights)
    assert facts["drawn"]
    assert all("dsm" in name for name in facts["drawn"])
    assert facts["not_taken"] == []
    begin(fresh, weights)
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in objective.state_dict().items())
    wide = parse_recipe("pretrain", "mae", []).build(tuple(found.values()), torch.Generator())
    with pytest.raises(InputError, match=r"'encoder\..+' of the start has shape \(.*\), the recipe's \(.*\); use the recipe"):
        require_fit(wide, weights)
    few = [type(s)(**{**vars(s), "unit": "m"}) if s.name == "sentinel1_grd" else s for s in specs]
    Encoder(recipe.build(tuple(few), torch.Generator()).encoder.config).save(tmp_path / "other")
    with pytest.raises(InputError, match=r"the start knows sentinel1_grd as VV, VH in m at 10 m, the archive has .* in dB"):
        sensors_of(Job(**{**vars(job), "start": storage.absolute(str(tmp_path / "other"))}), opened)
