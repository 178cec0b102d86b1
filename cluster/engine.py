"""One optimiser step of an objective, whatever hosts it: what is computed, recorded and left out.

`cluster/zero.py` takes it under DeepSpeed on any number of ranks, `cluster/bare.py` in plain torch on one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cluster.optimiser import OptimiserConfig
from cluster.spikes import Spikes
from models.batch import Batch
from models.distributed import world_size
from models.flops import FlopCounter
from models.moving import MovingAverage

Judge = Callable[[float], bool]
"""Given the norm of a step's whole gradient, whether the step is to be taken."""


class Engine(ABC):
    """An objective that is trained on this rank.

    flops: operations of this rank's last step, counted in the first step of each kind; 0 where blocks are compiled.
    """

    def __init__(self, objective: Any, config: OptimiserConfig, num_steps: int, counts_flops: bool):
        self.config, self._num_steps, self._counts_flops = config, num_steps, counts_flops
        self._flops_of: dict[tuple[Any, ...], int] = {}
        self._spikes = Spikes(config.skip_above)
        self._shares: list[tuple[float, bool]] = []
        self.flops = 0
        if config.average_momentum:
            objective.average = MovingAverage(objective.encoder)

    @property
    @abstractmethod
    def objective(self) -> nn.Module:
        """What is trained, as it is now."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it is trained."""

    @abstractmethod
    def save(self, folder: str, next_step: int) -> None:
        """Write this rank's share of the training state; every rank must call it."""

    @abstractmethod
    def load(self, folder: str) -> int:
        """Restore what `save` wrote and return the next step; on as many ranks as then the run goes on bit by bit."""

    @abstractmethod
    def begin_with(self, weights: dict[str, torch.Tensor]) -> None:
        """Have the float32 masters be these, of which the objective was given before; every rank must call it."""

    @abstractmethod
    def gather_master_weights(self) -> dict[str, torch.Tensor]:
        """Return all parameters, in float32, and buffers by name; every rank must call it, and every rank gets them."""

    def _build(self, objective: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of what is trained, and remember what its groups stand for."""
        return self._remember(self.config.build(objective))

    def _remember(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return `optimiser`, whose groups follow those of the others before it in `_groups`."""
        self._shares += [(group["rate_share"], group["decays"]) for group in optimiser.param_groups]
        return optimiser

    @abstractmethod
    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups of parameters, in the order in which it was built."""

    @abstractmethod
    def _backward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Add a micro-batch's share to the step's gradient; return the objective's terms."""

    @abstractmethod
    def _update(self, judge: Judge) -> float:
        """Move the weights if `judge` says so; forget the gradient and return its norm."""

    def _whole(self) -> AbstractContextManager[None]:
        """Have all weights whole inside; what is done to those that are not trained stays."""
        return nullcontext()

    def step(self, step: int, batches: Iterable[tuple[Batch, torch.Generator]]) -> dict[str, Any]:
        """Train on one step's micro-batches of this rank; return the loss terms averaged over all ranks and lanes.

        'skipped' among them says why the step was not taken, if it was not. Raise RunFailed, on every rank, if that goes on.
        """
        rate = self._set_rates(step)
        totals: dict[str, torch.Tensor] = {}
        count, kind = 0, ""
        self.flops = 0
        for batch, generator in batches:
            with self._counting(batch):
                terms = self._backward(batch.to(self.device), generator)
            count, kind = count + 1, "+".join(batch.tiles)
            for name, value in terms.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach().float()
        averaged = _mean_over_ranks(totals, count)
        why: list[str | None] = []

        def judge(norm: float) -> bool:
            loss = averaged["loss"] if all(map(math.isfinite, averaged.values())) else math.nan
            # Sensors that take turns name their terms: their losses have levels of their own.
            why.append(self._spikes.judge(f"{kind}: {' '.join(averaged)}", loss, norm))
            return why[0] is None

        norm = self._update(judge)
        self._follow(step)
        self._spikes.require_progress(step)
        skipped = {"skipped": why[0]} if why[0] else {}
        return averaged | {"gradient_norm": norm, "learning_rate": rate} | skipped

    def _set_rates(self, step: int) -> float:
        rate, decay = self.config.rate(step, self._num_steps), self.config.decay(step, self._num_steps)
        for group, (share, decays) in zip(self._groups(), self._shares, strict=True):
            group["lr"] = rate * share * (1.0 if decays else self.config.bias_rate_share)
            group["weight_decay"] = decay if decays else 0.0
        return rate

    def _follow(self, step: int) -> None:
        """Move what follows the trained weights: teachers, queues, the average that is exported."""
        objective: Any = self.objective
        after_step = getattr(objective, "after_step", None)
        if not after_step and not self.config.average_momentum:
            return
        with self._whole():
            if after_step:
                after_step(step, self._num_steps)
            if self.config.average_momentum:
                # Early on the average would be of what training began with: it forgets faster then.
                objective.average.update(objective.encoder, min(self.config.average_momentum, (1 + step) / (10 + step)))

    @contextmanager
    def _counting(self, batch: Batch) -> Iterator[None]:
        """Add the operations of what is done inside to `flops`: those of the first batch of the same shapes and turn."""
        kind = (*((name, tiles.pixels.shape) for name, tiles in batch.tiles.items()), batch.index % max(1, len(batch.tiles)))
        if self._counts_flops and kind not in self._flops_of:
            with FlopCounter() as counter:
                yield
            self._flops_of[kind] = counter.total
        else:
            yield
        self.flops += self._flops_of.get(kind, 0)


def _mean_over_ranks(totals: dict[str, torch.Tensor], count: int) -> dict[str, float]:
    """Return the mean of terms that are summed over `count` micro-batches of each rank."""
    stacked = torch.stack([totals[name] for name in sorted(totals)]) / count
    if world_size() > 1:
        dist.all_reduce(stacked)
    return dict(zip(sorted(totals), (stacked / world_size()).tolist()))
