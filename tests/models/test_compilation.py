"""Compiled blocks: one graph each, with the losses and gradients of plain ones.

Traced, but without the code generator, which takes minutes: tests/bench/bench_compile.py has it.
"""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from models.batch import Batch
from models.compilation import compile_blocks, require_compiler
from models.encoder import EncoderConfig
from models.errors import InputError
from models.moe import MoEConfig
from models.objectives.mae import Mae, MaeConfig
from models.objectives.msgfm import Msgfm, MsgfmConfig
from models.sensor import SensorSpec
from models.vit import VitConfig


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def vit(sensors: tuple[SensorSpec, ...], moe: MoEConfig) -> nn.Module:
    encoder = EncoderConfig(VitConfig(8, 2, 2, moe=moe), 20.0, sensors, hidden="absent")
    return Mae(encoder, MaeConfig(VitConfig(8, 1, 2, has_class_token=False)), torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("kind", "moe"), [("vit", MoEConfig(4, 2)), ("swin", MoEConfig(4, routing="soft", slots=2))])
def test_compiled_steps_are_the_same_steps(
    kind: str,
    moe: MoEConfig,
    make_config: Callable[..., EncoderConfig],
    make_batch: Callable[..., Batch],
    specs: dict[str, SensorSpec],
) -> None:
    sensors = specs["optical"], specs["radar"]
    if kind == "vit":
        plain = vit(sensors, moe)
    else:
        plain = Msgfm(MsgfmConfig(make_config(*sensors, moe=moe), mask_block_m=40.0), torch.Generator().manual_seed(1))
    compiled = copy.deepcopy(plain)
    names = list(compiled.state_dict())
    assert compile_blocks(compiled, "eager") == (3 if kind == "vit" else 4)
    assert list(compiled.state_dict()) == names
    for index in range(2):
        batch = make_batch(*sensors, index=index, seed=index)
        losses = [part(batch, torch.Generator().manual_seed(index))["loss"] for part in (plain, compiled)]
        torch.testing.assert_close(*losses)
        for loss in losses:
            loss.backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters()):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert dict(torch._dynamo.utils.counters["graph_break"]) == {}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1


def test_a_machine_without_a_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(InputError, match=r"compile needs a C\+\+ compiler .*found /no/such/compiler; install one"):
        require_compiler()
