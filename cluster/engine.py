"""One optimiser step under DeepSpeed ZeRO: what is wrapped, with which precision, how it is saved."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from models.batch import Batch
from pipeline.errors import InputError, RunFailed

TAG = "state"


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to `final_rate_share` of the peak."""

    learning_rate: float = 1e-3
    """Peak rate, for the batch of this run (no hidden scaling)."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 50
    final_rate_share: float = 0.02
    clip_norm: float = 1.0
    zero_stage: int = 2
    """DeepSpeed ZeRO stage, 0 to 3."""
    bf16: bool = True
    """bf16 weights and activations with float32 master weights; False: all float32."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise InputError(f"zero_stage is {self.zero_stage}, expected 0, 1, 2 or 3")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate is {self.learning_rate}, expected a positive number")

    def rate(self, step: int, num_steps: int) -> float:
        """Return the learning rate of `step` (from 0)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        share = self.final_rate_share + (1 - self.final_rate_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.learning_rate * share


class Engine:
    """An objective under DeepSpeed on this rank. `accumulate`: micro-batches a rank gives to one step."""

    def __init__(self, objective: nn.Module, config: OptimiserConfig, num_steps: int, batch_size: int, accumulate: int):
        self._config, self._num_steps = config, num_steps
        optimiser = torch.optim.AdamW(parameter_groups(objective, config.weight_decay), config.learning_rate, config.betas)
        self._deepspeed, *_ = deepspeed.initialize(
            model=objective,
            optimizer=optimiser,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": batch_size,
                "gradient_accumulation_steps": accumulate,
                "gradient_clipping": config.clip_norm,
                "bf16": {"enabled": config.bf16},
                # Reductions in float32: gradients of few samples in bf16 lose what many ranks should average.
                "communication_data_type": "fp32",
                "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
        )
        self.device = self._deepspeed.device

    @property
    def objective(self) -> nn.Module:
        return self._deepspeed.module

    def step(self, step: int, batches: Iterable[tuple[Batch, torch.Generator]]) -> dict[str, float]:
        """Train on one step's micro-batches of this rank; return the loss terms averaged over all ranks and lanes.

        Raise RunFailed, on every rank, if one is not finite.
        """
        rate = self._config.rate(step, self._num_steps)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, torch.Tensor] = {}
        count = 0
        for batch, generator in batches:
            terms = self._deepspeed(batch.to(self.device), generator)
            self._deepspeed.backward(terms["loss"])
            self._deepspeed.step()
            count += 1
            for name, value in terms.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach().float()
        if after_step := getattr(self.objective, "after_step", None):
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

    def save(self, folder: str, next_step: int) -> None:
        """Write this rank's share of the training state; every rank must call it."""
        # DeepSpeed needs this entry to convert stages 1 and 2 to another world size (0.19).
        state = {"next_step": next_step, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        self._deepspeed.save_checkpoint(folder, tag=TAG, client_state=state)

    def load(self, folder: str) -> int:
        """Restore what `save` wrote for the same number of ranks; return the next step."""
        _, state = self._deepspeed.load_checkpoint(folder, tag=TAG)
        return int(state["next_step"])

    def gather_master_weights(self) -> dict[str, torch.Tensor]:
        """Return all parameters, in float32, and buffers by name; every rank must call it, and every rank gets them."""
        weights = {}
        for name, parameter in self._deepspeed.module.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            weights[name] = (parameter.detach().float() if full is None else full).cpu().clone()
        return weights | {name: buffer.detach().cpu().clone() for name, buffer in self._deepspeed.module.named_buffers()}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimiser groups: matrices decay; biases, norms, tokens and tables (fewer than two dimensions) do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2]
    kept = [p for p in trained if p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
