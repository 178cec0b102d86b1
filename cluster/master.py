"""Weights in bf16 that an optimiser moves in float32."""

import torch
from torch import Tensor


class MasterWeights:
    """The weights of `optimiser` with float32 masters beside them, or, without bf16, the weights themselves."""

    def __init__(self, optimiser: torch.optim.Optimizer, bf16: bool):
        self.optimiser = optimiser
        self.weights: list[Tensor] = [p for group in optimiser.param_groups for p in group["params"]]
        self.masters = self.weights
        if not bf16:
            return
        self.masters = [p.detach().float().clone() for p in self.weights]
        masters = iter(self.masters)
        for group in optimiser.param_groups:
            group["params"] = [next(masters) for _ in group["params"]]
        for weight in self.weights:
            weight.data = weight.data.bfloat16()

    @torch.no_grad()
    def take_gradients(self, num_ranks: int = 1) -> None:
        """Set the masters' gradients to the weights', which are sums over `num_ranks`.

        A weight without gradient stands still but for decay and momentum, as under DeepSpeed.
        """
        for weight, master in zip(self.weights, self.masters):
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.to(master.dtype)
            if num_ranks > 1:
                master.grad /= num_ranks

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights."""
        self.optimiser.step()
        if self.masters is not self.weights:
            torch._foreach_copy_(self.weights, self.masters)

    def forget_gradients(self) -> None:
        for tensor in (*self.weights, *self.masters):
            tensor.grad = None
