"""LARS: every parameter's step has a length in proportion to the parameter's own (You et al. 2017, arXiv 1708.03888)."""

from collections.abc import Callable
from typing import Any

import torch


class Lars(torch.optim.Optimizer):
    """g = gradient + weight_decay * w;  r = trust * |w| / |g|;  v = momentum * v + r * g;  w = w - rate * v.

    r is 1 where a norm is 0, and in groups whose `trust` is 0: biases and norms, which contrastive learning leaves out. The
    rate is outside the momentum, as in torch's SGD; published code with it inside differs while the rate changes.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; return what `closure`, if given, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        change = parameter.grad.add(parameter, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if group["trust"]:
            length, size = parameter.norm(), change.norm()
            change = change * torch.where((length > 0) & (size > 0), group["trust"] * length / size, 1.0)
        velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
        velocity.mul_(group["momentum"]).add_(change)
        parameter.sub_(velocity, alpha=group["lr"])
