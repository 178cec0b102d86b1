"""What a micro-batch asks of a processor, counted in a forward and backward pass of few samples on the CPU.

Not from rules about parameters, and not on the meta device: how many tokens are visible is read off masks, so shapes depend
on values. Everything is done but products, which give zeros: that takes seconds where the products of a ViT-L take minutes.
Memory is what is alive at each moment, not a sum over layers. Two passes of different sizes tell what grows with the samples
from what does not. How states are shared out over ranks is not decided here.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from models.batch import Batch
from models.flops import FlopCounter, is_product, operations
from models.vit import fused_attention

ALLOCATES_ONLY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that touch none of the memory they return."""
DRAWS = {"normal_", "uniform_", "bernoulli_", "random_", "exponential_"}
SAMPLES = (2, 4)
"""Sizes of the two passes: what compares samples needs two."""


@dataclass(frozen=True)
class Moment:
    """Up to the arrival of one more gradient: bytes alive whatever the batch, bytes a sample, gradients there, in numbers.

    Weights and their gradients are not among the bytes.
    """

    fixed_bytes: float
    sample_bytes: float
    gradients: int


@dataclass(frozen=True)
class Cost:
    """Of one sensor set, per sample of a micro-batch of a given size, forward and backward.

    flops       operations of the model, as `models.flops` counts them
    done_flops  with what is computed a second time
    bytes       read and written by all operations but products
    batch_bytes of what a sample is given as
    moments     in the order of time
    """

    flops: float
    done_flops: float
    bytes: float
    batch_bytes: float
    moments: tuple[Moment, ...]

    def live_bytes(self, samples: int) -> float:
        """Return the most that is alive at once for a micro-batch of `samples`, weights and gradients apart."""
        return max(moment.fixed_bytes + samples * moment.sample_bytes for moment in self.moments)


class CostCounter(TorchDispatchMode):
    """Counts what is done inside `with`: `flops`, `moved` bytes; `live` bytes of what was made and is not gone, their `peak`.

    `given`: bytes that were there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.done_flops = self.moved = self.live = self.peak = self.given = 0
        self._alive: dict[int, Any] = {}
        self._left_out: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = (_shaped if is_product(function) else _done)(function, args, kwargs or {})
        inputs = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_iter(output) if isinstance(x, Tensor)]
        flops = operations(function, args, kwargs or {}, output)
        self.done_flops += flops
        self.flops += flops * FlopCounter.is_counting
        known = {x.untyped_storage()._cdata for x in inputs}
        is_view = not function._schema.is_mutable and all(x.untyped_storage()._cdata in known for x in outputs)
        if not (flops or is_view or function._overloadpacket.__name__ in ALLOCATES_ONLY):
            self.moved += sum(map(_bytes, inputs)) + sum(map(_bytes, outputs or _written(function, args)))
        for x in outputs:
            self.watch(x)
        return output

    def leave_out(self, module: nn.Module) -> None:
        """Do not count the weights and buffers of `module`, nor views of them."""
        storages = (x.untyped_storage() for x in (*module.parameters(), *module.buffers()))
        self._left_out |= {storage._cdata: storage for storage in storages}  # held, so that no other has its address

    def watch(self, x: Tensor) -> None:
        """Count `x` among what is alive, as long as it is."""
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in self._left_out or x.device.type == "meta":
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.live -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _done(function: Any, args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _shaped(function: Any, args: Any, kwargs: Any) -> Any:
    """Return zeros in place of what `function` would make: no shape depends on a product's values."""
    meta_args, meta_kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
    return tree_map_only(Tensor, lambda x: torch.zeros_like(x, device="cpu"), function(*meta_args, **meta_kwargs))


class UndrawnWeights(TorchDispatchMode):
    """Inside, what is drawn is 0: a model's weights do not matter to what it costs, and drawing them takes longest."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._overloadpacket.__name__ in DRAWS:
            return args[0].zero_()
        return function(*args, **(kwargs or {}))


def _bytes(x: Tensor) -> int:
    """Return the bytes of `x` that differ: what is repeated by a stride of 0 is read once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def measure(objective: nn.Module, make_batch: Callable[[int], Batch], is_fused: bool, micro_batch: int) -> Cost:
    """Return what `objective` takes of batches that `make_batch` makes of a number of samples.

    micro_batch: samples that share what a batch costs whatever its size, such as the generation of a stem's weights.
    is_fused: as on a GPU, where attention keeps no scores for going back, whatever this machine does.
    """
    with fused_attention() if is_fused else nullcontext():
        first, second = (_Course(objective, make_batch(samples)) for samples in SAMPLES)
    extra = SAMPLES[1] - SAMPLES[0]
    moments = []
    for (low, gradients), (high, _) in zip(first.moments, second.moments, strict=True):
        slope = max(0.0, (high - low) / extra)
        moments.append(Moment(low - SAMPLES[0] * slope, slope, gradients))

    def per_sample(name: str) -> float:
        low, high = getattr(first.counter, name), getattr(second.counter, name)
        slope = (high - low) / extra
        return slope + (low - SAMPLES[0] * slope) / micro_batch

    return Cost(per_sample("flops"), per_sample("done_flops"), per_sample("moved"), per_sample("given"), tuple(moments))


def _written(function: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Return what an operation that returns nothing, such as a fused optimiser's, writes to, as its schema says."""
    changed = [
        value for argument, value in zip(function._schema.arguments, args) if argument.alias_info and argument.alias_info.is_write
    ]
    return [x for x in tree_iter(changed) if isinstance(x, Tensor)]


def _tensors(batch: Batch) -> list[Tensor]:
    own = [x for tiles in batch.tiles.values() for x in (tiles.pixels, tiles.is_valid, tiles.is_present, tiles.time_days)]
    return [batch.lonlat, *own, *(x for crop in batch.crops for x in _tensors(crop))]


class _Course:
    """One pass forward and back: its `counter`, and (bytes alive, gradients there) up to each gradient, which is then let go."""

    def __init__(self, objective: nn.Module, batch: Batch) -> None:
        self.counter = CostCounter()
        self.counter.leave_out(objective)
        self.moments: list[tuple[int, int]] = []
        self._gradients = 0
        trained = [p for p in objective.parameters() if p.requires_grad]
        handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in trained]
        try:
            for x in _tensors(batch):
                self.counter.watch(x)
            self.counter.given = self.counter.live
            with self.counter:
                loss = objective(batch, torch.Generator().manual_seed(0))["loss"]
                loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        self.moments.append((self.counter.peak, self._gradients))

    def _arrived(self, parameter: nn.Parameter) -> None:
        self.moments.append((self.counter.peak, self._gradients))
        self._gradients += parameter.numel()
        parameter.grad = None
        self.counter.peak = self.counter.live
