"""Experts shared out over ranks: each rank keeps some of every mixture's, trains them by itself and saves them.

DeepSpeed sees nothing of them: its own expert parallelism (0.19) needs its own layer, with another routing. Here the same tokens
reach the same experts as without (`models/moe.py`), and an expert's states are on one rank only, at every ZeRO stage of the rest.
"""

import re
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.master import MasterWeights
from cluster.optimiser import OptimiserConfig
from models.distributed import world_size
from models.moe import EXPERT_WEIGHTS, MixtureOfExperts
from models.moving import MovingAverage
from pipeline.errors import InputError

FILE = re.compile(r"experts_(\d+)\.pt")


class OwnExperts:
    """This rank's experts of `objective` on `device`, from where they are removed as parameters."""

    def __init__(self, objective: nn.Module, config: OptimiserConfig, device: torch.device | str):
        names = {id(p): name for name, p in objective.named_parameters()}
        whole = {f"{path}.{name}" for path, _ in _mixtures(objective) for name in EXPERT_WEIGHTS}
        optimiser = config.build(objective, whole)
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if world_size() > 1 else (0, 1)
        own: dict[str, nn.Parameter] = {}
        for path, mixture in _mixtures(objective):
            own |= {f"{path}.{name}": parameter for name, parameter in mixture.share_out(rank, ranks).items()}
        for parameter in own.values():
            parameter.data = parameter.data.to(device)
        self._names: list[str] = []
        for group in optimiser.param_groups:
            here = [names[id(p)] for p in group["params"]]
            group["params"], self._names = [own[name] for name in here], self._names + here
        self._weights, self._rank, self._ranks = MasterWeights(optimiser, config.bf16), rank, ranks

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        return self._weights.optimiser

    def norm(self) -> float:
        """Take the gradients of all ranks' mean loss; return the norm of all experts' together."""
        self._weights.take_gradients(self._ranks)
        square = torch.stack([master.grad.square().sum() for master in self._weights.masters if master.grad is not None]).sum()
        if self._ranks > 1:
            dist.all_reduce(square)
        return float(square.sqrt())

    @torch.no_grad()
    def step(self, is_taken: bool, share: float) -> None:
        """Move the experts by `share` of their gradients if the step is taken; forget the gradients."""
        if is_taken:
            for master in self._weights.masters:
                if share < 1 and master.grad is not None:
                    master.grad *= share
            self._weights.step()
        self._weights.forget_gradients()

    def save(self, folder: str) -> None:
        """Write this rank's experts with their masters and moments."""
        state = self.optimiser.state
        found = {
            name: {"weight": master.detach(), **state.get(master, {})} for name, master in zip(self._names, self._weights.masters)
        }
        torch.save(found, Path(folder) / f"experts_{self._rank}.pt")

    @torch.no_grad()
    def load(self, folder: str) -> None:
        """Restore what as many or other ranks have saved."""
        found = sorted((int(match[1]), path) for path in Path(folder).iterdir() if (match := FILE.fullmatch(path.name)))
        parts = [torch.load(path, mmap=True, weights_only=True) for _, path in found]
        for name, weight, master in zip(self._names, self._weights.weights, self._weights.masters):
            facts = {key: self._own([part[name][key] for part in parts], master) for key in parts[0][name]}
            master.copy_(facts.pop("weight"))
            weight.copy_(master)
            self.optimiser.state[master] = facts

    def _own(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """Return this rank's share of a state, or the state where it is none of single experts, such as a count of steps."""
        chosen = torch.cat(parts).chunk(self._ranks)[self._rank] if parts[0].ndim == like.ndim else parts[0]
        return chosen.to(like.device if chosen.ndim else chosen.device, copy=True)

    def gather(self) -> dict[str, Tensor]:
        """Return all experts' float32 weights by name; every rank must call it."""
        found = {}
        for name, master in zip(self._names, self._weights.masters):
            parts = [torch.empty_like(master) for _ in range(self._ranks)]
            if self._ranks > 1:
                dist.all_gather(parts, master.detach().contiguous())
            found[name] = torch.cat(parts if self._ranks > 1 else [master.detach()]).cpu()
        return found


def require_shareable(objective: nn.Module, most_ranks: range) -> None:
    """Raise InputError unless the experts of `objective` can be shared out over any of these numbers of ranks."""
    mixtures = _mixtures(objective)
    if not mixtures:
        raise InputError("expert_parallel is set, and the recipe has no experts; leave it out, or take a recipe such as msgfm")
    if any(
        isinstance(part, MixtureOfExperts)
        for average in objective.modules()
        if isinstance(average, MovingAverage)
        for part in average.modules()
    ):
        raise InputError("expert_parallel is set, and a teacher follows the experts, for which it needs them whole; leave it out")
    for _, mixture in mixtures:
        if wrong := [ranks for ranks in most_ranks if mixture.config.num_experts % ranks]:
            raise InputError(
                f"{mixture.config.num_experts} experts cannot be shared out evenly over {wrong[0]} workers; "
                f"change the number of one of them, or leave expert_parallel out"
            )


def _mixtures(objective: nn.Module) -> list[tuple[str, MixtureOfExperts]]:
    """Return the mixtures that are trained, with their names."""
    found = [(path, part) for path, part in objective.named_modules() if isinstance(part, MixtureOfExperts)]
    return [(path, part) for path, part in found if any(p.requires_grad for p in part.parameters())]
