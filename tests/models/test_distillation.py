from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.objectives.distillation import Distillation, DistillationConfig
from models.objectives.targets import (
    TEMPERATURE,
    mean_over_sensors,
    pooled_distance,
    prototype_distance,
    relation_distance,
    token_distance,
    whiten,
)
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.vit import VitConfig
from tests.models import two_ranks

Make = Callable[..., Batch]
MakeConfig = Callable[..., EncoderConfig]
Specs = dict[str, SensorSpec]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def teacher(make_config: MakeConfig) -> Encoder:
    encoder = Encoder(make_config(embed_dim=16, num_experts=4), seeded(0))
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=seeded(parameter.numel())) * 0.3)
    return encoder


@pytest.fixture
def model(make_config: MakeConfig, teacher: Encoder) -> Distillation:
    return Distillation(DistillationConfig(make_config()), teacher, seeded(1))


def test_teacher_is_frozen_and_no_part_of_the_model(model: Distillation, teacher: Encoder, make_batch: Make, specs: Specs) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model.train()(make_batch(specs["optical"]), seeded())["loss"].backward()
    optimiser.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    assert all(name.split(".")[0] in ("encoder", "heads") for name in model.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    assert {p.grad is None for p in model.encoder.backbone.parameters()} == {False}


def test_loss_equals_formula(model: Distillation, teacher: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["radar"], specs["optical"], index=1)
    maps = []
    for encoder in (teacher, model.encoder):
        tiles = batch.tiles["radar"]
        normalised, _ = encoder.normalise(tiles, encoder.spec("radar"))
        maps.append(encoder.eval().features(normalised, tiles.is_observed.flatten(0, 1), "radar").maps)
    grid = pooled = 0.0
    for taught, learnt, head in zip(maps[0], maps[1], model.heads):
        everywhere = torch.ones(taught.shape[:3], dtype=torch.bool)
        wanted, made = whiten(taught, everywhere), head(learnt)
        grid += F.smooth_l1_loss(made, wanted).item() / len(model.heads)
        spread = wanted.mean((1, 2)).std(0, correction=0) + 1e-3
        pooled += F.smooth_l1_loss(made.mean((1, 2)) / spread, wanted.mean((1, 2)) / spread).item() / len(model.heads)
    terms = model.eval()(batch, seeded())
    assert terms["grid"].item() == pytest.approx(grid, rel=1e-3)
    assert terms["pooled"].item() == pytest.approx(pooled, rel=1e-3)
    assert terms["loss"].item() == pytest.approx(grid + pooled, rel=1e-3)


def test_whitening_makes_every_direction_count_the_same() -> None:
    mixing = torch.diag(torch.tensor([10.0, 1.0, 0.5])) @ torch.linalg.qr(torch.randn(3, 3, generator=seeded()))[0]
    tokens = torch.randn(8, 16, 16, 3, generator=seeded(1)) @ mixing + 5
    everywhere = torch.ones(8, 16, 16, dtype=torch.bool)
    white = whiten(tokens, everywhere).flatten(0, 2)
    torch.testing.assert_close(white.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3), atol=0.2, rtol=0)
    spoilt = tokens.clone()
    spoilt[0] = 1e4
    is_valid = everywhere.clone()
    is_valid[0] = False
    torch.testing.assert_close(whiten(spoilt, is_valid)[1:], whiten(tokens[1:], is_valid[1:]), atol=1e-3, rtol=1e-3)


def test_absent_tiles_teach_nothing(model: Distillation, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["radar"])
    tiles = replace(batch.tiles["radar"], is_present=torch.zeros(4, 1, dtype=torch.bool))
    terms = model(replace(batch, tiles={"radar": tiles}), seeded())
    assert terms["loss"] == 0


def test_student_learns_from_the_teacher(model: Distillation, make_batch: Make, specs: Specs) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        terms = model(make_batch(specs["optical"], specs["dsm"], index=step, seed=step % 4), seeded())
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        losses.append(terms["loss"].item())
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_teacher_follows_device_and_dtype(model: Distillation, teacher: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["aerial"])
    exact = model(batch, seeded())["loss"]
    rough = model.to(torch.bfloat16)(batch, seeded())["loss"]
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


def test_invalid_cells_do_not_count() -> None:
    wanted, made = (torch.randn(1, 1, 2, 8, generator=seeded(n)) for n in (5, 6))
    is_valid = torch.tensor([[[True, False]]])
    torch.testing.assert_close(token_distance(made, wanted, is_valid)[0], F.smooth_l1_loss(made[:, :, :1], wanted[:, :, :1]))
    assert token_distance(made, wanted, ~is_valid & is_valid).item() == 0
    other = made.clone()
    other[:, :, 1] = 99
    assert torch.equal(pooled_distance(made, wanted, is_valid), pooled_distance(other, wanted, is_valid))


def test_refuses_a_student_of_other_depth(make_config: MakeConfig, teacher: Encoder) -> None:
    config = make_config()
    net = config.backbone
    shallow = replace(config, backbone=replace(net, depths=net.depths[:1], num_heads=net.num_heads[:1], moe_stages=()))
    with pytest.raises(InputError, match="student has 1 stages"):
        Distillation(DistillationConfig(shallow), teacher)


def test_refuses_a_teacher_of_other_sensors(make_config: MakeConfig, teacher: Encoder, specs: Specs) -> None:
    student = make_config(replace(specs["radar"], bands=("VH",)))
    with pytest.raises(InputError, match=r"student's sensor 'radar'.*'VH'.*expected as in the teacher.*'VV'"):
        Distillation(DistillationConfig(student), teacher)
    with pytest.raises(InputError, match="sensor 'lidar' is unknown"):
        Distillation(DistillationConfig(make_config(replace(specs["dsm"], name="lidar"))), teacher)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return two_ranks.train(made=two_ranks.distillations)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return two_ranks.train_on_ranks(2, tmp_path_factory.mktemp("ranks"), two_ranks.distillations)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_two_ranks_on_halves_are_one_on_the_whole(name: str, alone: dict, together: list) -> None:
    first, second = (found[name] for found in together)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone[name]["losses"], rel=1e-4)
    for key, gradient in alone[name]["gradients"].items():
        torch.testing.assert_close(first["gradients"][key], gradient, rtol=1e-3, atol=2e-5)
    for key, value in alone[name]["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-3, atol=2e-4)


def test_relations_are_cosines_between_all_pairs() -> None:
    made, wanted = (torch.randn(5, width, generator=seeded(width)) for width in (3, 4))
    is_present = torch.tensor([True, True, False, True, True])
    expected = []
    for i, j in permutations([0, 1, 3, 4], 2):
        cosines = [
            F.cosine_similarity(part[i] - part[is_present].mean(0), part[j] - part[is_present].mean(0), dim=0)
            for part in (made, wanted)
        ]
        expected.append((cosines[0] - cosines[1]) ** 2)
    torch.testing.assert_close(relation_distance(made, wanted, is_present), torch.stack(expected).mean())
    turn = torch.linalg.qr(torch.randn(4, 4, generator=seeded(9)))[0]
    assert relation_distance(3 * wanted @ turn, wanted, is_present) < 1e-10  # a student may turn and scale its space
    assert relation_distance(made, wanted, torch.zeros(5, dtype=torch.bool)) == 0


def test_soft_choices_are_least_apart_where_a_student_is_its_teacher() -> None:
    wanted, prototypes = torch.randn(6, 8, generator=seeded(1)), F.normalize(torch.randn(20, 8, generator=seeded(2)), dim=-1)
    is_present = torch.tensor([True] * 5 + [False])
    made = wanted.clone().requires_grad_()
    distance = prototype_distance(made, wanted, is_present, prototypes)
    centred = wanted - wanted[:5].mean(0)
    chosen = (centred / centred[:5].square().sum(1).mean().sqrt() @ prototypes.T / TEMPERATURE).softmax(-1)
    entropy = -(chosen * chosen.log()).sum(-1)
    torch.testing.assert_close(distance[:5].detach(), entropy[:5], rtol=1e-4, atol=1e-5)
    assert distance[5] == 0
    distance.sum().backward()
    assert made.grad is not None
    assert made.grad.abs().max() < 1e-5
    assert (prototype_distance(made[[1, 0, 3, 2, 4, 5]], wanted, is_present, prototypes)[:4] > distance[:4]).all()


def test_a_student_of_one_sensor_learns_from_what_the_teacher_sees_of_others(
    make_config: MakeConfig, teacher: Encoder, make_batch: Make, specs: Specs
) -> None:
    config = DistillationConfig(make_config(specs["radar"]), taught_by=("optical",))
    model, batch = Distillation(config, teacher, seeded(1)), make_batch(specs["radar"], specs["optical"])
    loss = model(batch, seeded())["loss"]
    noise = replace(batch.tiles["optical"], pixels=batch.tiles["optical"].pixels.flip(0))
    assert model(replace(batch, tiles={**batch.tiles, "optical": noise}), seeded())["loss"] != loss
    absent = replace(batch.tiles["optical"], is_present=torch.zeros(4, 1, dtype=torch.bool))
    assert model(replace(batch, tiles={**batch.tiles, "optical": absent}), seeded())["loss"] == 0
    with pytest.raises(InputError, match="a batch has radar, the teacher is to see optical"):
        model(make_batch(specs["radar"]), seeded())
    with pytest.raises(InputError, match="a batch has optical, the student knows radar"):
        model(make_batch(specs["optical"]), seeded())


def test_targets_of_several_sensors_are_their_mean_where_they_are_valid() -> None:
    maps = [torch.randn(1, 1, 3, 2, generator=seeded(n)) for n in (1, 2)]
    valid = [torch.tensor([[[True, True, False]]]), torch.tensor([[[True, False, False]]])]
    mean, is_valid = mean_over_sensors(maps, valid)
    torch.testing.assert_close(mean[0, 0, 0], (maps[0] + maps[1])[0, 0, 0] / 2)
    torch.testing.assert_close(mean[0, 0, 1], maps[0][0, 0, 1])
    assert is_valid.tolist() == [[[True, True, False]]]


def test_several_students_learn_as_each_would_alone(
    make_config: MakeConfig, teacher: Encoder, make_batch: Make, specs: Specs
) -> None:
    vit = replace(make_config(), backbone=VitConfig(embed_dim=8, depth=2, num_heads=2))
    resnet = replace(make_config(), backbone=ResnetConfig(18, embed_dim=4))
    model = Distillation(DistillationConfig(make_config(), others=(("vit", vit), ("resnet", resnet))), teacher, seeded(1)).eval()
    assert [*model.encoders] == ["first", "vit", "resnet"]
    batch, total = make_batch(specs["optical"]), 0.0
    terms = model(batch, seeded())
    for name in ("first", "vit", "resnet"):
        other = Distillation(DistillationConfig(model.encoders[name].config), teacher, seeded(2)).eval()
        other.encoder, other.heads = model.encoders[name], model.others[name].heads if name != "first" else model.heads
        own = other(batch, seeded())
        total += own["loss"].item()
        assert terms["pooled" if name == "first" else f"{name}/pooled"].item() == pytest.approx(own["pooled"].item(), rel=1e-5)
        assert own["grid"] > 0
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)
