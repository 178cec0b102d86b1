"""Which optimiser, at which rate: schedules, weight decay, and the groups of parameters that these differ for."""

import math
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn

from cluster.lars import Lars
from pipeline.errors import InputError


@dataclass(frozen=True)
class OptimiserConfig:
    """Which optimiser; linear warm-up, then cosine decay to `final_rate_share` of the peak, or a straight `cooldown_share`, or

    steps at `decay_at`.
    """

    algorithm: Literal["adamw", "sgd", "lars"] = "adamw"
    """LARS needs whole parameters: `zero_stage` 0 and `bf16` False."""
    learning_rate: float = 1e-3
    """Peak rate, for the batch of this run (no hidden scaling)."""
    bias_rate_share: float = 1.0
    """Rate of biases and norms, as a share of `learning_rate`."""
    layer_decay: float = 1.0
    """Rate of each of the encoder's blocks, as a share of the next one's; of its stem and positions, of the first block's."""
    weight_decay: float = 0.05
    """Of matrices and kernels only."""
    final_weight_decay: float | None = None
    """What weight decay rises or falls to over the run, as a cosine does; None: it stays."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    gradient_momentum: float = 0.9
    """Of SGD and LARS."""
    warmup_steps: int = 50
    final_rate_share: float = 0.02
    cooldown_share: float = 0.0
    """Share of the run, its last, in which the rate falls in a straight line to `final_rate_share`; until then it stays (warm-up,
    stable, decay: Hu et al. 2024, arXiv 2404.06395). 0: the cosine.
    """
    decay_at: tuple[float, ...] = ()
    """Shares of the run after each of which the rate is a tenth; in place of the cosine."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0: any."""
    sensor_weights: tuple[tuple[str, float], ...] = ()
    """What the loss of a step counts: the mean of the weights of the sensors that take part in it, 1 for those not named."""
    skip_above: float = 0.0
    """A step whose loss or gradient norm lies so many standard deviations above those of late is not taken (cluster/spikes.py),
    such as 6; 0: only steps that are not finite are left out. Where a loss leaves a plateau gradients rise as well.
    """
    average_momentum: float = 0.0
    """Of the moving average of the encoder's weights, which is then exported in their place, such as 0.9999; 0: none."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload: bool = False
    """Keep optimiser states and float32 weights in the machine's memory instead of the GPU's (ZeRO 1 to 3): slower, smaller."""
    expert_parallel: bool = False
    """Each rank holds some of every mixture's experts, and tokens travel to them (ZeRO 0 to 2); else each rank holds them all."""
    bf16: bool = True
    """bf16 weights and activations with float32 master weights; False: all float32."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"zero_stage is {self.zero_stage}, expected 0, 1, 2 or 3")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate is {self.learning_rate}, expected a positive number")
        if any(not 0 < share < 1 for share in self.decay_at):
            raise InputError(f"decay_at is {self.decay_at}, expected shares of the run between 0 and 1")
        if not 0 <= self.cooldown_share <= 1 or (self.cooldown_share and self.decay_at):
            raise InputError(
                f"cooldown_share is {self.cooldown_share} and decay_at {self.decay_at}, expected one of them, a share from 0 to 1"
            )
        if any(weight < 0 for _, weight in self.sensor_weights):
            raise InputError(f"sensor_weights is {self.sensor_weights}, expected weights of 0 or more")
        if self.skip_above < 0 or not 0 <= self.average_momentum < 1:
            raise InputError(
                f"skip_above is {self.skip_above} and average_momentum {self.average_momentum}, expected a number of standard "
                f"deviations or 0, and from 0 to below 1"
            )
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay}, expected above 0, at most 1")
        if self.offload and not self.zero_stage:
            raise InputError("offload is set and zero_stage is 0, where every rank holds all; expected zero_stage 1, 2 or 3")
        if self.expert_parallel and (self.zero_stage == 3 or self.offload or self.average_momentum or self.algorithm == "lars"):
            raise InputError(
                f"expert_parallel with zero_stage {self.zero_stage}, offload {self.offload}, average_momentum "
                f"{self.average_momentum} and {self.algorithm}; expected zero_stage 0 to 2, no offload, no average, adamw or sgd"
            )
        if self.algorithm == "lars" and (self.zero_stage or self.bf16):
            raise InputError(
                f"lars with zero_stage {self.zero_stage} and bf16 {self.bf16} would see flattened pieces of parameters, whose "
                f"norms it needs; expected zero_stage 0 and bf16 False"
            )

    def rate(self, step: int, num_steps: int) -> float:
        """Return the learning rate of `step` (from 0)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.decay_at:
            return self.learning_rate * 0.1 ** sum(step >= share * num_steps for share in self.decay_at)
        if self.cooldown_share:
            left = min(1.0, (1 - step / num_steps) / self.cooldown_share)
            return self.learning_rate * (self.final_rate_share + (1 - self.final_rate_share) * left)
        done = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        return self.learning_rate * _cosine(1.0, self.final_rate_share, done)

    def decay(self, step: int, num_steps: int) -> float:
        """Return the weight decay of `step` (from 0)."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return _cosine(self.weight_decay, self.final_weight_decay, step / max(1, num_steps))

    def weight(self, terms: Iterable[str]) -> float:
        """Return what a step counts that has such loss terms: 'mse/dsm', 'objective/dsm+sentinel2_l2a', 'l1/dsm->dsm'."""
        found = {sensor for term in terms for sensor in re.split(r"\+|->", term.partition("/")[2]) if sensor}
        weights = dict(self.sensor_weights)
        return fmean(weights.get(sensor, 1.0) for sensor in found) if weights and found else 1.0

    def build(self, module: nn.Module, names: Container[str] | None = None) -> torch.optim.Optimizer:
        """Return the optimiser of `module`, or of those of its parameters that are named, at rate 0 until a step sets it."""
        groups = parameter_groups(module, self.weight_decay, self.layer_decay, names)
        if self.algorithm == "sgd":
            return torch.optim.SGD(groups, 0.0, self.gradient_momentum)
        if self.algorithm == "lars":
            for group in groups:
                group |= {} if group["decays"] else {"trust": 0.0}
            return Lars(groups, 0.0, self.gradient_momentum)
        # One pass over the weights, where torch's default makes a dozen, each with a new tensor of their size.
        return torch.optim.AdamW(groups, 0.0, self.betas, fused=True)


def _cosine(first: float, last: float, done: float) -> float:
    """Return what lies between the first and the last value where a share `done` of half a cosine is over."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0, names: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices, which decay; biases, norms and tokens (fewer than two dimensions), which do not.

    `decays` says which. `rate_share` falls by `layer_decay` from each of the encoder's blocks to the one before it.
    """
    shares = _rate_shares(module, layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (names is None or name in names):
            groups.setdefault((shares.get(name, 1.0), parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "rate_share": share, "decays": decays}
        for (share, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def _rate_shares(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return each of the encoder's parameters' share of the rate (Bao et al. 2022, arXiv 2106.08254): last norm 1, stem least."""
    encoder: Any = getattr(module, "encoder", None)
    if layer_decay == 1 or encoder is None:
        return {}
    depth = len(encoder.backbone.blocks)
    layers = {f"blocks.{index}": index + 1 for index in range(depth)} | {"norm": depth + 1}
    for stage in range(len(getattr(encoder.backbone, "merges", ()))):
        layers[f"merges.{stage}"] = 1 + sum(encoder.backbone.config.depths[: stage + 1])
    shares = {}
    for name, _ in encoder.named_parameters():
        layer = next((number for part, number in layers.items() if name.startswith(f"backbone.{part}.")), 0)
        shares[f"encoder.{name}"] = layer_decay ** (depth + 1 - layer)
    return shares
