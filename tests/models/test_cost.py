"""What a micro-batch costs, against sums written out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import cost
from models.batch import Batch
from models.cost import CostCounter, UndrawnWeights, measure
from models.encoder import EncoderConfig
from models.flops import FlopCounter
from models.objectives.mae import Mae, MaeConfig
from models.recomputation import recompute_blocks
from models.vit import VitConfig, attend, fused_attention

WIDTH, DEPTH = 64, 3


class Layers(nn.Module):
    """Layers without activation: going back needs each one's input, of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH))

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        x = batch.lonlat.float()
        for layer in self.layers:
            x = layer(x)
        return {"loss": x.sum()}


def rows(samples: int) -> Batch:
    return Batch({}, torch.ones(samples, WIDTH, dtype=torch.float64))


def test_layers_cost_what_they_keep() -> None:
    found = measure(Layers(), rows, is_fused=False, micro_batch=4)
    row = 4 * WIDTH
    assert found.flops == found.done_flops == 2 * WIDTH**2 * (3 * DEPTH - 1), "the first layer's input needs no gradient"
    assert found.batch_bytes == 8 * WIDTH
    # Before the first gradient: what was given (float64), its copy, each layer's output but the last, which is summed; and two
    # gradients of rows while the last layer goes back.
    first = found.moments[0]
    assert first.gradients == 0
    assert 2 * row + row * DEPTH <= first.sample_bytes <= 2 * row + row * (DEPTH + 3)
    assert [moment.gradients for moment in found.moments] == [WIDTH**2 * number for number in range(DEPTH + 1)]
    assert found.live_bytes(100) == max(m.fixed_bytes + 100 * m.sample_bytes for m in found.moments)


def test_what_a_batch_costs_whatever_its_size_is_shared_by_its_samples() -> None:
    """As a stem whose weights are generated once a batch."""

    class Generated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = nn.Linear(WIDTH, WIDTH, bias=False)

        def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            weights = self.generator(torch.ones(WIDTH, WIDTH))
            return {"loss": (batch.lonlat.float() @ weights).sum()}

    of_batch, of_sample = 2 * 2 * WIDTH**3, 2 * 2 * WIDTH**2  # forward, and back to the generator
    for micro_batch in (1, 8):
        found = measure(Generated(), rows, is_fused=False, micro_batch=micro_batch)
        assert found.flops == pytest.approx(of_sample + of_batch / micro_batch)


def test_weights_are_not_counted_by_their_views() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2000, WIDTH))
            self.register_buffer("scale", torch.ones(2000))

        def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            return {"loss": (batch.lonlat.float() @ self.weight.t() * self.scale[None]).sum()}

    found = measure(Viewed(), rows, is_fused=False, micro_batch=4)
    of_weight = 4 * 2000 * WIDTH
    assert found.moments[0].fixed_bytes < 1.1 * of_weight, "its gradient, on the way"


def test_bytes_moved_are_those_of_operations_that_are_no_products() -> None:
    x, y = torch.ones(1000), torch.ones(1000)
    with CostCounter() as counter:
        z = x + y  # two read, one written
        z.view(10, 100)  # nothing
        torch.empty(500)  # nothing
        z.mul_(2.0)  # one read, one written
        torch.ones(30, 30) @ torch.ones(30, 30)  # made: twice 900 written
    assert counter.moved == 4 * (3 * 1000 + 2 * 1000 + 2 * 900)
    assert counter.flops == 2 * 30**3


def test_what_is_gone_is_not_alive() -> None:
    with CostCounter() as counter:
        x = torch.ones(1000)
        y = x + 1
        del x
        assert counter.live == 4000
        z = y.view(10, 100)
        del y
        assert counter.live == 4000, "a view keeps what it looks at"
        del z
    assert (counter.live, counter.peak) == (0, 8000)


@pytest.fixture
def autoencoder(specs: dict[str, Any]) -> Callable[[], Mae]:
    encoder = EncoderConfig(VitConfig(32, 3, 2), 20.0, (specs["optical"],), hidden="absent")
    decoder = MaeConfig(VitConfig(32, 1, 2, has_class_token=False))
    return lambda: Mae(encoder, decoder, torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture
def make(specs: dict[str, Any], make_batch: Callable[..., Batch]) -> Callable[[int], Batch]:
    return lambda samples: make_batch(specs["optical"], num=samples)


def test_products_that_are_not_done_cost_the_same(
    autoencoder: Callable[[], Mae], make: Callable[[int], Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    with UndrawnWeights():
        undrawn = autoencoder()
    assert not any(bool(p.any()) for p in undrawn.parameters() if p.ndim > 1)
    found = measure(undrawn, make, is_fused=True, micro_batch=4)
    monkeypatch.setattr(cost, "is_product", lambda function: False)
    assert measure(autoencoder(), make, is_fused=True, micro_batch=4) == found
    model = autoencoder()
    with FlopCounter() as counter:
        model(make(4), torch.Generator().manual_seed(0))["loss"].backward()
    assert 4 * found.flops == pytest.approx(counter.total, rel=1e-6)


def test_recomputed_blocks_keep_less_and_do_more(autoencoder: Callable[[], Mae], make: Callable[[int], Batch]) -> None:
    thrifty = autoencoder()
    recompute_blocks(thrifty)
    found, plain = measure(thrifty, make, is_fused=True, micro_batch=4), measure(autoencoder(), make, is_fused=True, micro_batch=4)
    assert found.flops == plain.flops == plain.done_flops
    assert 1.15 * plain.flops < found.done_flops < 1.35 * plain.flops
    assert found.live_bytes(32) < 0.7 * plain.live_bytes(32)


def test_fused_attention_keeps_no_scores() -> None:
    """Of 2 heads of 50 tokens of 8 numbers: the plain kernel keeps 50 x 50 scores a head, the fused one a number a token."""
    kept: dict[bool, int] = {}
    for is_fused in (False, True):
        sizes: dict[int, int] = {}
        q, k, v = (torch.randn(1, 2, 50, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

        def keep(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            if is_fused:
                with fused_attention():
                    output = attend(q, k, v, None)
            else:
                output = attend(q, k, v, None)
        kept[is_fused] = sum(sizes.values())
        output.sum().backward()
    assert kept[False] - kept[True] >= 2 * 2 * 50 * 50 - 4 * 2 * 50 * 16
    assert kept[True] <= 2 * (4 * 2 * 50 * 8) + 4 * 2 * 50
