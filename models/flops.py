"""How many floating-point operations a step takes: counted from the operations it does, not from a rule about parameters.

A masked encoder sees fewer tokens than its decoder, stems and sensors differ: 6 N D is wrong for all of them. Counted are
matrix products, convolutions and attention, forward and backward, two operations for each multiply-add, as is usual;
normalisation, activations and the optimiser are not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten


class FlopCounter(TorchDispatchMode):
    """Adds up in `total` what is done inside `with`. Blocks that are compiled are not seen."""

    is_counting = True
    """False inside `uncounted`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if FlopCounter.is_counting:
            self.total += operations(function, args, kwargs or {}, output)
        return output


def is_product(function: Any) -> bool:
    """Return whether `function` is what is counted: a product, convolution or attention, and changes none of its inputs."""
    packet = function._overloadpacket
    return (packet in flop_registry or packet in ATTENTION | ATTENTION_BACKWARD) and not function._schema.is_mutable


def operations(function: Any, args: Any, kwargs: Any, output: Any) -> int:
    """Return the operations of one call of `function`, 0 for all but products, convolutions and attention."""
    packet = function._overloadpacket
    if packet in ATTENTION:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if packet in ATTENTION_BACKWARD:
        return 2 * sdpa_flop_count(*(x.shape for x in args[1:4]))
    if packet in flop_registry:
        formula: Any = flop_registry[packet]
        return formula(*args, **kwargs, out_val=output)
    return 0


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave out what is done inside: what is computed a second time is no work of the model's."""
    FlopCounter.is_counting = False
    try:
        yield
    finally:
        FlopCounter.is_counting = True


ATTENTION = {aten._scaled_dot_product_flash_attention_for_cpu}
"""What torch's registry does not know (2.13)."""
ATTENTION_BACKWARD = {
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    aten._scaled_dot_product_flash_attention_backward,
    aten._scaled_dot_product_efficient_attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward,
}
"""Fused kernels compute the scores anew going back, which the registry counts: work of the kernel, not of the model."""
