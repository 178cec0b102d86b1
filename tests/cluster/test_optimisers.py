"""Rates, weight decay and optimisers: worked numbers, LARS by its formula, and the same under DeepSpeed as in a plain loop."""

import copy
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cluster.bare import BareEngine
from cluster.lars import Lars
from cluster.optimiser import OptimiserConfig, parameter_groups
from cluster.zero import ZeroEngine
from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.vit import VitConfig
from pipeline.errors import InputError

NUM_STEPS = 4


def test_rate_rises_then_falls_as_a_cosine_or_in_steps() -> None:
    cosine = OptimiserConfig(learning_rate=2.0, warmup_steps=4, final_rate_share=0.0)
    assert [cosine.rate(step, 12) for step in (0, 3, 4, 8, 12)] == pytest.approx([0.5, 2.0, 2.0, 1.0, 0.0])
    steps = OptimiserConfig(learning_rate=2.0, warmup_steps=0, decay_at=(0.6, 0.8))
    assert [steps.rate(step, 200) for step in (0, 119, 120, 159, 160, 199)] == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])


def test_rate_stays_until_it_falls_in_a_straight_line() -> None:
    stable = OptimiserConfig(learning_rate=2.0, warmup_steps=4, cooldown_share=0.25, final_rate_share=0.1)
    assert [stable.rate(step, 40) for step in (0, 4, 29, 30, 35, 40)] == pytest.approx([0.5, 2.0, 2.0, 2.0, 1.1, 0.2])


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_earlier_blocks_move_less(kind: str) -> None:
    """Blocks are 0.5 of the next one's rate, what leads to a stage is with its first block, the stem half of the first block."""
    spec = SensorSpec("dem", "active", "height", "m", 10.0, ("height",), (None,), (0.0,), (1.0,))
    backbones = {"vit": VitConfig(16, 3, 2), "swin": SwinConfig(16, (2, 1), (2, 2), window=2), "resnet": ResnetConfig(18)}
    model = nn.Module()
    model.encoder = Encoder(EncoderConfig(backbones[kind], 40.0, (spec,)), torch.Generator().manual_seed(0))
    model.head = nn.Linear(2, 2)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["rate_share"] for group in parameter_groups(model, 0.1, 0.5) for p in group["params"]}
    assert set(found) == set(names.values())
    depth = {"vit": 3, "swin": 3, "resnet": 8}[kind]
    expected = {"head.weight": 1.0, "encoder.stem": 0.5 ** (depth + 1)}
    expected |= {f"encoder.backbone.blocks.{index}.": 0.5 ** (depth - index) for index in range(depth)}
    if kind != "resnet":
        expected["encoder.backbone.norm"] = 1.0
    if kind == "swin":
        expected["encoder.backbone.merges.0."] = 0.5
    for part, share in expected.items():
        values = {value for name, value in found.items() if name.startswith(part)}
        assert values == {share}, part
    for group in parameter_groups(model, 0.1, 0.5):
        assert {p.ndim >= 2 for p in group["params"]} == {group["decays"]} == {group["weight_decay"] == 0.1}
    assert {group["rate_share"] for group in parameter_groups(model, 0.1)} == {1.0}


def test_weight_decay_stays_or_follows_a_cosine() -> None:
    assert OptimiserConfig(weight_decay=0.04).decay(7, 10) == 0.04
    rising = OptimiserConfig(weight_decay=0.04, final_weight_decay=0.4)
    assert [rising.decay(step, 10) for step in (0, 5, 10)] == pytest.approx([0.04, 0.22, 0.4])


def test_adamw_in_one_pass_is_that_of_loshchilov_and_hutter() -> None:
    """Against the formula in float64: rate 0.1, betas 0.9 and 0.95, decay 0.2 of the matrix and none of the bias."""
    model, draw = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    optimiser = OptimiserConfig(weight_decay=0.2).build(model)
    kept = {name: value.detach().double() for name, value in model.named_parameters()}
    first, second = ({name: torch.zeros_like(value) for name, value in kept.items()} for _ in range(2))
    for step in range(1, 6):
        for name, value in model.named_parameters():
            value.grad = torch.randn(value.shape, generator=draw)
            first[name] = 0.9 * first[name] + 0.1 * value.grad
            second[name] = 0.95 * second[name] + 0.05 * value.grad.double() ** 2
            change = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.95**step)).sqrt() + 1e-8)
            kept[name] = kept[name] * (1 - 0.1 * (0.2 if name == "weight" else 0.0)) - 0.1 * change
        for group in optimiser.param_groups:
            group["lr"] = 0.1
        optimiser.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach().double(), kept[name], atol=1e-6, rtol=1e-5)


def test_lars_by_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 2, generator=draw, dtype=torch.float64), torch.randn(3, generator=draw, dtype=torch.float64)]
    gradients = torch.randn(5, 3, 2, generator=draw, dtype=torch.float64)
    matrix, bias = (nn.Parameter(w.clone()) for w in weights)
    lars = Lars([{"params": [matrix], "weight_decay": 0.1}, {"params": [bias], "trust": 0.0}], lr=0.5, momentum=0.9, trust=0.02)
    kept, speed = weights[0].tolist(), [[0.0] * 2 for _ in range(3)]
    for gradient in gradients:
        matrix.grad, bias.grad = gradient.clone(), gradient[:, 0].clone()
        lars.step()
        change = [[float(gradient[i, j]) + 0.1 * kept[i][j] for j in range(2)] for i in range(3)]
        length, size = (math.sqrt(sum(v * v for row in rows for v in row)) for rows in (kept, change))
        for i in range(3):
            for j in range(2):
                speed[i][j] = 0.9 * speed[i][j] + 0.02 * length / size * change[i][j]
                kept[i][j] -= 0.5 * speed[i][j]
    torch.testing.assert_close(matrix.detach(), torch.tensor(kept, dtype=torch.float64))
    plain = nn.Parameter(weights[1].clone())
    sgd = torch.optim.SGD([plain], 0.5, momentum=0.9)
    for gradient in gradients:
        plain.grad = gradient[:, 0].clone()
        sgd.step()
    torch.testing.assert_close(bias, plain)


def test_lars_does_not_see_how_large_a_gradient_is() -> None:
    ends = []
    for factor in (1.0, 1000.0):
        weight = nn.Parameter(torch.ones(4))
        weight.grad = factor * torch.arange(4.0)
        Lars([weight], lr=1.0).step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)
    nothing = nn.Parameter(torch.zeros(2))
    nothing.grad = torch.ones(2)
    Lars([nothing], lr=0.5).step()
    torch.testing.assert_close(nothing.detach(), torch.full((2,), -0.5))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"lars with zero_stage 2 and bf16 True .* expected zero_stage 0 and bf16 False"):
        OptimiserConfig(algorithm="lars")
    with pytest.raises(InputError, match=r"decay_at is \(120.0,\), expected shares of the run"):
        OptimiserConfig(decay_at=(120.0,))
    with pytest.raises(InputError, match=r"cooldown_share is 0.2 and decay_at \(0.5,\), expected one of them"):
        OptimiserConfig(decay_at=(0.5,), cooldown_share=0.2)
    with pytest.raises(InputError, match=r"layer_decay is 1\.5, expected above 0, at most 1"):
        OptimiserConfig(layer_decay=1.5)


def test_a_step_counts_what_its_sensors_do() -> None:
    config = OptimiserConfig(sensor_weights=(("dsm", 0.5), ("sar", 2.0)))
    assert config.weight(["loss", "mse/dsm", "balance"]) == 0.5
    assert config.weight(["objective/dsm+optical"]) == 0.75
    assert config.weight(["l1/dsm->dsm", "l1/dsm->sar"]) == 1.25
    assert config.weight(["loss"]) == 1.0
    with pytest.raises(InputError, match=r"expected weights of 0 or more"):
        OptimiserConfig(sensor_weights=(("dsm", -1.0),))
    model, ends, plain = Line(), [], {"bf16": False, "warmup_steps": 0, "clip_norm": 0.0}
    for weights in ((), (("dsm", 3.0),)):
        config = OptimiserConfig("sgd", 0.1, sensor_weights=weights, **plain)  # type: ignore[arg-type]
        engine = BareEngine(copy.deepcopy(model), config, NUM_STEPS)
        engine.step(0, [(batches()[0], torch.Generator())])
        ends.append(engine.gather_master_weights()["line.bias"] - model.line.bias.detach())
    torch.testing.assert_close(ends[1], 3 * ends[0])


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 3)
        with torch.no_grad():
            self.line.weight.copy_(torch.arange(6.0).view(3, 2) / 3 - 1)
            self.line.bias.fill_(0.5)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        loss = self.line(batch.lonlat.float()).pow(2).mean()
        return {"loss": loss, "mse/dsm": loss.detach()}


def configs() -> list[OptimiserConfig]:
    plain = {"bf16": False, "learning_rate": 0.1, "clip_norm": 0.0, "warmup_steps": 1, "bias_rate_share": 0.5}
    return [
        OptimiserConfig(algorithm="sgd", zero_stage=2, decay_at=(0.5,), **plain),  # type: ignore[arg-type]
        OptimiserConfig(algorithm="lars", zero_stage=0, **plain),  # type: ignore[arg-type]
        OptimiserConfig(algorithm="adamw", zero_stage=1, final_weight_decay=0.5, **plain),  # type: ignore[arg-type]
    ]


def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [Batch({}, torch.randn(4, 2, generator=draw, dtype=torch.float64)) for _ in range(NUM_STEPS)]


def _under_deepspeed(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=1)
    ends = []
    for config in configs():
        engine = ZeroEngine(Line(), config, NUM_STEPS, 4, 1)
        for step, batch in enumerate(batches()):
            engine.step(step, [(batch, torch.Generator())])
        ends.append(engine.gather_master_weights())
    torch.save(ends, f"{folder}/ends.pt")


def test_under_deepspeed_as_in_a_plain_loop(tmp_path: Path) -> None:
    mp.spawn(_under_deepspeed, (str(tmp_path),), 1)
    for config, end in zip(configs(), torch.load(tmp_path / "ends.pt", weights_only=True), strict=True):
        model = Line()
        optimiser = config.build(model)
        assert [len(group["params"]) for group in parameter_groups(model, 0.0)] == [1, 1]
        for step, batch in enumerate(batches()):
            optimiser.zero_grad()
            model(batch, torch.Generator())["loss"].backward()
            for group, share in zip(optimiser.param_groups, (1.0, 0.5)):
                group["lr"] = share * config.rate(step, NUM_STEPS)
            optimiser.param_groups[0]["weight_decay"] = config.decay(step, NUM_STEPS)
            optimiser.step()
        for name, value in model.named_parameters():
            torch.testing.assert_close(end[name], value.detach(), msg=f"{config.algorithm} {name}")
