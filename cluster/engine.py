"""One optimiser step under DeepSpeed ZeRO: what is wrapped, with which precision, how it is saved."""

import io
import math
import os
import socket
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import nn

from cluster.lars import Lars
from models.batch import Batch
from models.flops import FlopCounter
from pipeline.errors import InputError, RunFailed

TAG = "state"
RANKS = "ranks.txt"
"""In a checkpoint, how many ranks wrote it."""
WHOLE = "whole.pt"
"""In what a checkpoint is converted to, all weights and buffers."""
ANY_NORM = 1e12
"""Stands for no clipping: without a limit DeepSpeed (0.19) does not measure the gradient's norm at stage 0."""


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
    zero_stage: int = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
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
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay}, expected above 0, at most 1")
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

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of `module`, at rate 0 until a step sets it."""
        groups = parameter_groups(module, self.weight_decay, self.layer_decay)
        if self.algorithm == "sgd":
            return torch.optim.SGD(groups, 0.0, self.gradient_momentum)
        if self.algorithm == "lars":
            for group in groups:
                group |= {} if group["decays"] else {"trust": 0.0}
            return Lars(groups, 0.0, self.gradient_momentum)
        return torch.optim.AdamW(groups, 0.0, self.betas)


def _cosine(first: float, last: float, done: float) -> float:
    """Return what lies between the first and the last value where a share `done` of half a cosine is over."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Engine:
    """An objective under DeepSpeed on this rank. `accumulate`: micro-batches a rank gives to one step.

    flops: operations of this rank's last step, counted in the first step of each kind; 0 where blocks are compiled.
    """

    def __init__(
        self,
        objective: nn.Module,
        config: OptimiserConfig,
        num_steps: int,
        batch_size: int,
        accumulate: int,
        counts_flops: bool = True,
    ):
        self._config, self._num_steps, self._counts_flops = config, num_steps, counts_flops
        self._flops_of: dict[tuple[Any, ...], int] = {}
        self.flops = 0
        optimiser = config.build(objective)
        self._groups = [(group["rate_share"], group["decays"]) for group in optimiser.param_groups]
        self._deepspeed, *_ = deepspeed.initialize(
            model=objective,
            optimizer=optimiser,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": batch_size,
                "gradient_accumulation_steps": accumulate,
                "gradient_clipping": config.clip_norm or ANY_NORM,
                "bf16": {"enabled": config.bf16},
                # Reductions in float32: gradients of few samples in bf16 lose what many ranks should average.
                "communication_data_type": "fp32",
                "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        self.device = self._deepspeed.device
        if isinstance(self._deepspeed.optimizer, FP16_UnfusedOptimizer):
            # It has taken a step without gradients to make room (0.19), here at rate 0: Adam shall not count it.
            self._deepspeed.optimizer.optimizer.state.clear()

    @property
    def objective(self) -> nn.Module:
        return self._deepspeed.module

    def step(self, step: int, batches: Iterable[tuple[Batch, torch.Generator]]) -> dict[str, float]:
        """Train on one step's micro-batches of this rank; return the loss terms averaged over all ranks and lanes.

        Raise RunFailed, on every rank, if one is not finite.
        """
        rate = self._config.rate(step, self._num_steps)
        decay = self._config.decay(step, self._num_steps)
        for group, (share, decays) in zip(self._deepspeed.optimizer.param_groups, self._groups, strict=True):
            group["lr"] = rate * share * (1.0 if decays else self._config.bias_rate_share)
            group["weight_decay"] = decay if decays else 0.0
        if self._config.zero_stage == 3:
            # Else a module that this step does not use is given its last gradient once more (DeepSpeed 0.19).
            self._deepspeed.optimizer.grad_partitions_flat_buffer.zero_()
        totals: dict[str, torch.Tensor] = {}
        count = 0
        self.flops = 0
        for batch, generator in batches:
            with self._counting(batch):
                terms = self._deepspeed(batch.to(self.device), generator)
                self._deepspeed.backward(terms["loss"])
            self._deepspeed.step()
            count += 1
            for name, value in terms.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach().float()
        if after_step := getattr(self.objective, "after_step", None):
            with self._whole():
                after_step(step, self._num_steps)
        stacked = torch.stack([totals[name] for name in sorted(totals)]) / count
        dist.all_reduce(stacked)
        averaged = (stacked / dist.get_world_size()).tolist()
        if not all(map(math.isfinite, averaged)):
            raise RunFailed(
                f"step {step + 1}: loss terms are {dict(zip(sorted(totals), averaged))}, expected finite numbers; lower the "
                f"learning rate, lengthen the warm-up or clip harder, and begin in a new folder"
            )
        norm = self._deepspeed.get_global_grad_norm()
        return dict(zip(sorted(totals), averaged)) | {"gradient_norm": float(norm or 0.0), "learning_rate": rate}

    @contextmanager
    def _counting(self, batch: Batch) -> Iterator[None]:
        """Add the operations of what is done inside to `flops`: those of the first batch of the same sensors and turn."""
        kind = (*batch.tiles, batch.index % max(1, len(batch.tiles)))
        if self._counts_flops and kind not in self._flops_of:
            with FlopCounter() as counter:
                yield
            self._flops_of[kind] = counter.total
        else:
            yield
        self.flops += self._flops_of.get(kind, 0)

    def save(self, folder: str, next_step: int) -> None:
        """Write this rank's share of the training state; every rank must call it."""
        # DeepSpeed needs this entry to convert stages 1 and 2 to another world size (0.19).
        state = {"next_step": next_step, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self._deepspeed.save_checkpoint(folder, tag=TAG, client_state=state)
        if dist.get_rank() == 0:
            (Path(folder) / RANKS).write_text(str(dist.get_world_size()))

    def load(self, folder: str) -> int:
        """Restore what `save` wrote, on as many ranks or others, of one machine or many; return the next step.

        With as many ranks the run goes on bit by bit. `folder` is left as it is.
        """
        written = int((Path(folder) / RANKS).read_text())
        if written == dist.get_world_size() or not self._config.zero_stage:
            _, state = self._deepspeed.load_checkpoint(folder, tag=TAG)
        else:
            with _for_any_ranks(folder, self._config.zero_stage) as converted:
                self._deepspeed._config.load_universal_checkpoint = True
                _, state = self._deepspeed.load_checkpoint(converted, tag=TAG)
                self._deepspeed._config.load_universal_checkpoint = False
                # Stage 3 gives all groups one and the same counter of steps, which each of them would move (DeepSpeed 0.19).
                for facts in self._deepspeed.optimizer.optimizer.state.values():
                    facts |= {name: value.clone() for name, value in facts.items() if name == "step"}
                self._restore_untrained(torch.load(Path(converted) / WHOLE, mmap=True, weights_only=True))
        return int(state["next_step"])

    @torch.no_grad()
    def _restore_untrained(self, weights: dict[str, torch.Tensor]) -> None:
        """Set buffers and weights that are not trained, such as a moving average's: universal checkpoints leave them (0.19)."""
        with self._whole():
            held = [(name, p) for name, p in self.objective.named_parameters() if not p.requires_grad]
            for name, tensor in [*held, *self.objective.named_buffers()]:
                tensor.copy_(weights[name])

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Have all weights whole inside, which ZeRO 3 holds in parts; what is done to those that are not trained stays."""
        if self._config.zero_stage < 3:
            yield
            return
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        held = [p for p in self.objective.parameters() if not p.requires_grad]
        with GatheredParameters(trained), GatheredParameters(held, modifier_rank=0):
            yield

    def gather_master_weights(self) -> dict[str, torch.Tensor]:
        """Return all parameters, in float32, and buffers by name; every rank must call it, and every rank gets them."""
        optimiser, weights = self._deepspeed.optimizer, {}
        master: dict[int, torch.Tensor] = {}
        if isinstance(optimiser, FP16_UnfusedOptimizer):  # stage 0 in bf16
            for low, high in zip(optimiser.fp16_groups, optimiser.fp32_groups, strict=True):
                master |= {id(one): other for one, other in zip(low, high, strict=True)}
        for name, parameter in self.objective.named_parameters():
            if parameter.requires_grad:
                full = safe_get_full_fp32_param(parameter) if self._config.zero_stage else master.get(id(parameter), parameter)
                weights[name] = full.detach().cpu().clone()
        with self._whole():
            held = {name: p.detach().float() for name, p in self.objective.named_parameters() if not p.requires_grad}
            held |= dict(self.objective.named_buffers())
            return weights | {name: tensor.detach().cpu().clone() for name, tensor in held.items()}


@contextmanager
def _for_any_ranks(folder: str, zero_stage: int) -> Iterator[str]:
    """Yield a folder with what `folder` holds, not cut for a number of ranks: DeepSpeed's universal checkpoint, one a machine."""
    with tempfile.TemporaryDirectory() as own:
        places: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(places, (socket.gethostname(), own))
        converted = next(place for host, place in places if host == socket.gethostname())
        if converted == own:
            how = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            paths = {"input_folder": os.path.join(folder, TAG), "output_folder": os.path.join(own, TAG)}
            with redirect_stdout(io.StringIO()):
                ds_to_universal.main(Namespace(**paths, **how, inject_missing_state=False))
                if zero_stage == 3:
                    weights = get_fp32_state_dict_from_zero_checkpoint(folder, tag=TAG)
                else:
                    weights = torch.load(os.path.join(folder, TAG, "mp_rank_00_model_states.pt"), weights_only=False)["module"]
                torch.save(weights, Path(own) / WHOLE)
        dist.barrier()
        yield converted
        dist.barrier()


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices, which decay; biases, norms and tokens (fewer than two dimensions), which do not.

    `decays` says which. `rate_share` falls by `layer_decay` from each of the encoder's blocks to the one before it.
    """
    shares = _rate_shares(module, layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
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
