from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.objectives.distillation import Distillation, DistillationConfig, token_distance
from models.sensor import SensorSpec

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


def test_teacher_is_frozen_and_no_part_of_the_model(
    model: Distillation, teacher: Encoder, make_batch: Make, specs: Specs
) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model.train()(make_batch(specs["optical"]), seeded())["loss"].backward()
    optimiser.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training
    assert all(name.split(".")[0] in ("encoder", "pooled_head", "grid_head") for name in model.state_dict())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in model.parameters()}
    assert {p.grad is None for p in model.encoder.swin.parameters()} == {False}


def test_loss_equals_formula(model: Distillation, teacher: Encoder, make_batch: Make, specs: Specs) -> None:
    """Against the public embeddings of both encoders."""
    batch = make_batch(specs["radar"], specs["optical"], index=1)
    taught, learnt = teacher.encode(batch)["radar"], model.encoder.encode(batch)["radar"]
    cosine = F.cosine_similarity(model.pooled_head(learnt.pooled[:, 0]), taught.pooled[:, 0])
    wanted = F.layer_norm(taught.grid[:, 0], (32,))
    grid = F.smooth_l1_loss(model.grid_head(learnt.grid[:, 0]), wanted)
    terms = model(batch, seeded())
    assert terms["pooled"].item() == pytest.approx((1 - cosine).mean().item(), rel=1e-4)
    assert terms["grid"].item() == pytest.approx(grid.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((1 - cosine).mean().item() + grid.item(), rel=1e-4)


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


def test_teacher_follows_device_and_dtype(
    model: Distillation, teacher: Encoder, make_batch: Make, specs: Specs
) -> None:
    batch = make_batch(specs["aerial"])
    exact = model(batch, seeded())["loss"]
    rough = model.to(torch.bfloat16)(batch, seeded())["loss"]
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


def test_maps_of_other_size_are_resampled() -> None:
    taught = torch.randn(2, 4, 4, 8, generator=seeded())
    normed = F.layer_norm(taught, (8,))
    coarse = normed.view(2, 2, 2, 2, 2, 8).mean((2, 4))
    everywhere = torch.ones(2, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(token_distance(coarse, taught, everywhere), torch.zeros(2), atol=1e-6, rtol=0)
    assert token_distance(torch.zeros(2, 8, 8, 8), taught, torch.ones(2, 8, 8).bool()).shape == (2,)


def test_invalid_cells_do_not_count() -> None:
    taught = torch.randn(1, 1, 2, 8, generator=seeded())
    learnt = torch.randn(1, 1, 2, 8, generator=seeded(6))
    expected = F.smooth_l1_loss(learnt[:, :, :1], F.layer_norm(taught, (8,))[:, :, :1])
    is_valid = torch.tensor([[[True, False]]])
    torch.testing.assert_close(token_distance(learnt, taught, is_valid)[0], expected)
    assert token_distance(learnt, taught, ~is_valid & is_valid).item() == 0


def test_refuses_a_teacher_of_other_sensors(make_config: MakeConfig, teacher: Encoder, specs: Specs) -> None:
    student = make_config(replace(specs["radar"], bands=("VH",)))
    with pytest.raises(InputError, match=r"student's sensor 'radar'.*'VH'.*expected as in the teacher.*'VV'"):
        Distillation(DistillationConfig(student), teacher)
    with pytest.raises(InputError, match="sensor 'lidar' is unknown"):
        Distillation(DistillationConfig(make_config(replace(specs["dsm"], name="lidar"))), teacher)
