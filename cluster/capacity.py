"""Will it fit, how long: memory and seconds of a step from what a micro-batch costs, how states are shared, what devices can.

Formulas only; what a micro-batch costs is counted by `models.cost`, for whom by `workload`. The bytes of each ZeRO stage are
DeepSpeed's (0.19) as this project sets it up: bf16 weights, float32 master weights, moments and reductions.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from cluster.devices import Device
from cluster.optimiser import OptimiserConfig
from models.cost import Cost
from models.moe import EXPERT_WEIGHTS
from models.moving import MovingAverage

GIB = 2.0**30
STAGES = (0, 1, 2, 3)
BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at a time (its default)."""
LIVE = 1_000_000_000
"""Numbers of weights that stage 3 keeps whole at a time (its default)."""
GATHERED = 50_000_000
"""Numbers of weights that stage 3 fetches at a time, and then copies out (its default)."""
CONTEXT_GIB = 1.0
"""Of a GPU, taken by CUDA, its libraries and NCCL's buffers."""
SHARING_BYTES = 46.0
"""Read and written for each parameter around a reduction: flattened, to float32 and back, averaged, checked, clipped."""
AVERAGING_BYTES = 18.0
"""Read and written for each number of a moving average: the weight to float32, and both to the new average."""


@dataclass(frozen=True)
class States:
    """What a rank holds and moves of a model's weights. parameters are trained, frozen are not; buffers are float32 and whole

    on every rank, averages the moving ones among them. experts: trained weights that are shared out over ranks instead.
    """

    parameters: int
    frozen: int
    optimiser: OptimiserConfig
    buffers: int = 0
    experts: int = 0
    averages: int = 0

    @property
    def weight_bytes(self) -> int:
        return 2 if self.optimiser.bf16 else 4

    @property
    def moment_bytes(self) -> int:
        return 8 if self.optimiser.algorithm == "adamw" else 4

    def held(self, stage: int, ranks: int) -> float:
        """Return the bytes of a rank between steps, those on its own device."""
        weight, moments = self.weight_bytes, self.moment_bytes
        frozen = weight * self.frozen / (ranks if stage == 3 else 1) + 4 * self.buffers
        whole = weight + (4 if self.optimiser.bf16 else 0) + moments  # in float32 the weights are their own master
        frozen += whole * self.experts / ranks
        if stage == 0:
            return whole * self.parameters + frozen
        if self.optimiser.offload:
            return weight * self.parameters / (ranks if stage == 3 else 1) + frozen
        shared = (4 + moments) / ranks
        return (weight + shared if stage < 3 else 2 * weight / ranks + shared) * self.parameters + frozen

    def host_bytes(self, stage: int, ranks: int, micro_batches: int) -> float:
        """Return what a rank keeps in its machine's memory with `offload`: masters, moments, gradients, weights on their way,

        and in stages 1 and 2 the sum of gradients over micro-batches.
        """
        summed = self.weight_bytes if stage < 3 and micro_batches > 1 else 0
        return (4 + self.moment_bytes + 4 + self.weight_bytes + summed) * self.parameters / ranks if self.optimiser.offload else 0.0

    def peak(
        self, stage: int, ranks: int, is_gpu: bool, cost: Cost | None = None, samples: int = 0, micro_batches: int = 1
    ) -> float:
        """Return the most bytes of a rank at once: going back, while gradients are reduced, or in the optimiser's step."""
        weight, bucket = self.weight_bytes, min(self.parameters, BUCKET)
        held = self.held(stage, ranks) + (weight + 4.0) * self.experts / ranks  # gradients, the masters' too
        if stage == 2 and micro_batches > 1 and not self.optimiser.offload:
            held += weight * self.parameters / ranks  # the sum of its share of gradients
        if stage == 0:
            stepping = (weight + 4.0) * self.parameters
            copied = (6.0 if self.optimiser.bf16 else 4.0) * bucket if ranks > 1 else 0.0  # to float32 and back
            reducing = copied + weight * self.parameters
        else:
            stepping = 0.0 if self.optimiser.offload else (4.0 if stage == 3 else 8.0) * self.parameters / ranks
            copied = (8.0 if ranks > 1 else 4.0) * bucket if stage == 3 else 6.0 * bucket
            waiting = weight * (self.parameters - bucket) if stage == 1 else 0.0
            reducing = self._staged(stage, is_gpu) + copied + waiting
            stepping += self._staged(3, is_gpu) if stage == 3 else 0.0
        return held + max(reducing, stepping, self._going_back(stage, is_gpu, cost, samples, micro_batches))

    def _staged(self, stage: int, is_gpu: bool) -> float:
        """Return the bytes of the buffer in which gradients are gathered: on a CPU what was never written to takes no memory."""
        return (4.0 if stage == 3 else self.weight_bytes) * (BUCKET if is_gpu else min(self.parameters, BUCKET))

    def _going_back(self, stage: int, is_gpu: bool, cost: Cost | None, samples: int, micro_batches: int) -> float:
        """Return what is alive beside the states while a micro-batch goes forward and back.

        Gradients stay with their weights in stages 0 and 1, those of earlier micro-batches, too. In stage 2 they go into a buffer
        that is made anew each time, in stage 3 into one that stays; stage 3 fetches weights in pieces, and copies them out.
        """
        weight, most = self.weight_bytes, 0.0
        kept = 0.0
        if stage == 3:
            kept = weight * (min(self.parameters, LIVE) + min(self.parameters, GATHERED)) + self._staged(3, is_gpu)
        elif stage and is_gpu:
            kept = self._staged(stage, is_gpu)
        for moment in cost.moments if cost else ():
            gradients = self.parameters if stage < 2 and micro_batches > 1 else moment.gradients
            if stage == 2:
                gradients = 0 if is_gpu else min(gradients, BUCKET)
            most = max(most, moment.fixed_bytes + samples * moment.sample_bytes + (weight * gradients if stage < 3 else 0))
        return kept + most

    def moved(self, stage: int, ranks: int, reductions: int, optimiser_bytes: float) -> float:
        """Return the bytes of its own memory that a rank reads and writes for a step's reductions and update."""
        updated = 0.0 if self.optimiser.offload else self.updated(stage, ranks, optimiser_bytes)
        return updated + SHARING_BYTES * reductions * self.parameters + AVERAGING_BYTES * self.averages

    def updated(self, stage: int, ranks: int, optimiser_bytes: float) -> float:
        """Return the bytes that a rank's share of an update reads and writes, where the optimiser's states are."""
        return optimiser_bytes * self.parameters / (ranks if stage else 1)

    def copied(self, ranks: int, micro_batches: int) -> float:
        """Return the bytes between a rank and its machine's memory in a step: with `offload`, gradients there, weights back."""
        return (4.0 * micro_batches + self.weight_bytes) * self.parameters / ranks if self.optimiser.offload else 0.0

    def sent(self, stage: int, ranks: int, micro_batches: int) -> float:
        """Return the bytes that a rank of a ring sends in a step: float32 gradients and, from stage 1, weights."""
        reductions = micro_batches if stage >= 2 else 1
        gradients = (4.0 if stage == 3 else 8.0) * reductions
        weights = self.weight_bytes * (0 if stage == 0 else micro_batches if stage == 3 else 1)
        return (gradients + weights) * self.parameters * (ranks - 1) / ranks


def memory_gib(
    states: States, stage: int, ranks: int, device: Device, cost: Cost | None = None, samples: int = 0, micro_batches: int = 1
) -> float:
    """Return the memory that a rank of `ranks` needs for `micro_batches` of `samples` a step."""
    peak = states.peak(stage, ranks, device.is_gpu, cost, samples, micro_batches)
    return peak / GIB + (CONTEXT_GIB if device.is_gpu else 0.0)


def largest_micro_batch(states: States, stage: int, ranks: int, device: Device, cost: Cost, micro_batches: int = 1) -> int:
    """Return how many samples fit at a time, 0 for none."""

    def fits(samples: int) -> bool:
        return memory_gib(states, stage, ranks, device, cost, samples, micro_batches) <= device.memory_gib

    low, high = 0, 1
    while high < 2**20 and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Load:
    """What a rank does in one step: `flops` of products, bytes of its own memory, sent to others, copied from the host."""

    flops: float
    moved_bytes: float
    sent_bytes: float
    host_bytes: float

    def seconds(self, device: Device, link_gb_per_second: float) -> dict[str, float]:
        """Return the seconds of each, one after the other: a step overlaps none of them (no `overlap_comm`, one stream)."""
        return {
            "products": self.flops / (device.bf16_tflops * device.product_share * 1e12),
            "memory bandwidth": self.moved_bytes / (device.memory_gb_per_second * device.memory_share * 1e9),
            "interconnect": self.sent_bytes / (link_gb_per_second * 1e9),
            "host link": self.host_bytes / (device.host_gb_per_second * device.memory_share * 1e9),
        }


def states_of(objective: nn.Module, optimiser: OptimiserConfig) -> States:
    """Return how many numbers of `objective` are trained, how many are not, and how many are buffers.

    An engine's average of the encoder (`average_momentum`) is counted, too; it is not part of an objective as it is built.
    """
    named = [(name, p.numel(), p.requires_grad) for name, p in objective.named_parameters()]
    trained = sum(count for _, count, is_trained in named if is_trained)
    frozen = sum(count for _, count, is_trained in named if not is_trained)
    experts = sum(count for name, count, is_trained in named if is_trained and name.endswith(EXPERT_WEIGHTS))
    experts = experts if optimiser.expert_parallel else 0
    buffers = sum(b.numel() for b in objective.buffers())
    averages = sum(_size(module) for module in objective.modules() if isinstance(module, MovingAverage))
    if optimiser.average_momentum:
        encoder: Any = objective.encoder
        own = _size(encoder)
        buffers, averages = buffers + own, averages + own
    return States(trained - experts, frozen, optimiser, buffers, experts, averages)


def _size(module: nn.Module) -> int:
    return sum(x.numel() for x in (*module.parameters(), *module.buffers()))
