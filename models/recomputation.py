"""Keep less of a network for going back: what happens inside a transformer block is computed again instead (Chen et al. 2016,

arXiv 1604.06174), by torch's non-reentrant checkpointing. Parameter names and results stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.flops import uncounted
from models.swin import Block
from models.vit import VitBlock


def recompute_blocks(module: nn.Module) -> int:
    """Have every transformer block in `module` keep its inputs only; return how many there are."""
    blocks = [part for part in module.modules() if isinstance(part, Block | VitBlock)]
    for block in blocks:
        # A method, so that a copy of the block runs the copy's.
        block.forward = MethodType(_recomputed, block)  # type: ignore[method-assign]
    return len(blocks)


def _recomputed(block: nn.Module, *inputs: Any) -> Any:
    generators = [(x, x.get_state()) for x in inputs if isinstance(x, torch.Generator)]
    # Nothing is drawn from torch's global generator.
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(type(block).forward, block, *inputs, context_fn=lambda: (nullcontext(), _again(generators)), **how)


@contextmanager
def _again(generators: list[tuple[torch.Generator, torch.Tensor]]) -> Iterator[None]:
    """Draw inside what was drawn the first time, count no operations of it, and leave no trace of it behind."""
    now = [generator.get_state() for generator, _ in generators]
    for generator, state in generators:
        generator.set_state(state)
    try:
        with uncounted():
            yield
    finally:
        for (generator, _), state in zip(generators, now):
            generator.set_state(state)
