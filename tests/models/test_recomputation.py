"""Blocks that keep only their inputs: the same steps with less kept, and nothing counted or drawn twice."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.batch import Batch
from models.encoder import EncoderConfig
from models.flops import FlopCounter
from models.moe import MoEConfig
from models.objectives.mae import Mae, MaeConfig
from models.objectives.msgfm import Msgfm, MsgfmConfig
from models.recomputation import recompute_blocks
from models.sensor import SensorSpec
from models.vit import VitConfig


def step(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int, int, torch.Tensor]:
    """Go forward and back; return the loss, the bytes kept for going back, the operations, where the generator stands then."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with FlopCounter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model(batch, generator := torch.Generator().manual_seed(3))["loss"]
        loss.backward()
    return loss, sum(kept.values()), counter.total, generator.get_state()


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_the_same_step_with_less_kept(
    kind: str,
    make_config: Callable[..., EncoderConfig],
    make_batch: Callable[..., Batch],
    specs: dict[str, SensorSpec],
) -> None:
    sensors = specs["optical"], specs["radar"]
    if kind == "vit":
        backbone = VitConfig(32, 4, 2, drop_path=0.5, moe=MoEConfig(4, 2))
        encoder = EncoderConfig(backbone, 20.0, sensors, hidden="absent")
        plain: nn.Module = Mae(encoder, MaeConfig(VitConfig(32, 2, 2, has_class_token=False)), torch.Generator().manual_seed(1))
    else:
        plain = Msgfm(MsgfmConfig(make_config(*sensors, drop_path=0.5), mask_block_m=40.0), torch.Generator().manual_seed(1))
    thrifty = copy.deepcopy(plain)
    assert recompute_blocks(thrifty) == (6 if kind == "vit" else 4)
    thrifty = copy.deepcopy(thrifty)
    assert list(thrifty.state_dict()) == list(plain.state_dict())
    batch = make_batch(*sensors, num=8)
    (loss, kept, flops, state), (same, fewer, counted, end) = (step(model, batch) for model in (plain, thrifty))
    assert torch.equal(loss, same)
    assert fewer < 0.7 * kept
    assert counted == flops
    assert torch.equal(end, state)
    for (name, one), other in zip(plain.named_parameters(), thrifty.parameters()):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]
