"""A slowly moving copy of what is trained: the teacher of MoCo, BYOL and DINO.

Kept in float32 whatever the trained module is cast to: a step of an average with momentum 0.996 is lost in bf16. Its weights
are buffers: saved and resumed with the objective, but nothing that an optimiser trains, that ZeRO 3 takes apart, or that
DeepSpeed casts (it casts parameters one by one, whatever their module says to it).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of `source` that follows it by `update`."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(source).float().requires_grad_(False)
        for module in self.copy.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
            if hasattr(module, "drop"):
                module.drop = 0.0  # type: ignore[assignment]  # a teacher drops no paths

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MovingAverage":
        """Move with the objective, but stay in float32."""
        return super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)

    @torch.no_grad()
    def update(self, source: nn.Module, momentum: float) -> None:
        """Set every weight to momentum * itself + (1 - momentum) * the source's; what the source has as buffers is copied."""
        for name, parameter in source.named_parameters():
            average = self.copy.get_buffer(name)
            average.lerp_(parameter.to(average.dtype), 1 - momentum)
        for name, buffer in source.named_buffers():
            self.copy.get_buffer(name).copy_(buffer)

    def run(self, function: Callable[[Any], Any], like: nn.Module) -> Any:
        """Return function(copy) without gradient, computed in the dtype of `like`, the module that is trained."""
        parameter = next(like.parameters())
        is_low = parameter.dtype in (torch.bfloat16, torch.float16)
        with torch.no_grad(), torch.autocast(parameter.device.type, parameter.dtype if is_low else torch.bfloat16, enabled=is_low):
            return function(self.copy)


def cosine_momentum(base: float, step: int, num_steps: int) -> float:
    """Return 1 - (1 - base) (cos(pi step / num_steps) + 1) / 2: from `base` to 1 (BYOL, arXiv 2006.07733)."""
    return 1 - (1 - base) * (math.cos(math.pi * min(1.0, step / max(1, num_steps))) + 1) / 2
