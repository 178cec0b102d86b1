"""Optimiser steps under DeepSpeed ZeRO: what is wrapped, with which precision, how it is saved."""

import io
import math
import os
import socket
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import nn

from cluster.engine import Engine, Judge
from cluster.experts import OwnExperts
from cluster.optimiser import OptimiserConfig
from models.batch import Batch

if get_accelerator().device_name() == "cpu":
    # DeepSpeed (0.19) would compile it at the first start, for inference alone; whoever is killed meanwhile leaves a lock that all
    # later processes of the machine wait for, without end.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
TAG = "state"
RANKS = "ranks.txt"
"""In a checkpoint, how many ranks wrote it."""
WHOLE = "whole.pt"
"""In what a checkpoint is converted to, all weights and buffers."""
ANY_NORM = 1e12
"""Stands for no clipping: without a limit DeepSpeed (0.19) does not measure the gradient's norm at stage 0."""


class ZeroEngine(Engine):
    """An objective under DeepSpeed on this rank. `accumulate`: micro-batches a rank gives to one step."""

    def __init__(
        self,
        objective: nn.Module,
        config: OptimiserConfig,
        num_steps: int,
        batch_size: int,
        accumulate: int,
        counts_flops: bool = True,
    ):
        super().__init__(objective, config, num_steps, counts_flops)
        device = get_accelerator().current_device_name()
        self._experts = OwnExperts(objective, config, device) if config.expert_parallel else None
        self._deepspeed, *_ = deepspeed.initialize(
            model=objective,
            optimizer=self._build(objective),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": batch_size,
                "gradient_accumulation_steps": accumulate,
                "gradient_clipping": config.clip_norm or ANY_NORM,
                "bf16": {"enabled": config.bf16, "check_grad_overflow": True},
                "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False}
                | ({"offload_optimizer": {"device": "cpu"}} if config.offload else {}),
                "zero_force_ds_cpu_optimizer": False,  # torch's AdamW on the processor: theirs is compiled on each machine first
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            }
            # Reductions in float32: gradients of few samples in bf16 lose what many ranks should average.
            | ({"communication_data_type": "fp32"} if dist.get_world_size() > 1 else {}),
        )
        # DeepSpeed (0.19) reduces in a group of its own, with torch's 10 or 30 minutes for ranks that hang.
        seconds = dist.distributed_c10d._get_default_group()._get_backend(self.device).options._timeout
        dist.distributed_c10d._set_pg_timeout(seconds, self._deepspeed.data_parallel_group)
        if isinstance(self._deepspeed.optimizer, FP16_UnfusedOptimizer):
            # It has taken a step without gradients to make room (0.19), here at rate 0: Adam shall not count it.
            self._deepspeed.optimizer.optimizer.state.clear()
        if self._experts:
            self._remember(self._experts.optimiser)
        self._judge: Judge = lambda norm: True
        self._norm, self._is_taken = 0.0, False
        self._let_norms_be_judged()

    @property
    def objective(self) -> nn.Module:
        return self._deepspeed.module

    @property
    def device(self) -> torch.device:
        return self._deepspeed.device

    def step(self, step: int, batches: Iterable[tuple[Batch, torch.Generator]]) -> dict[str, Any]:
        self._forget_gradients()
        return super().step(step, batches)

    def _forget_gradients(self) -> None:
        """Else a module that a step does not use has its last gradient again, in stage 3 and with offload (DeepSpeed 0.19)."""
        optimiser, stage = self._deepspeed.optimizer, self.config.zero_stage
        if stage == 3:
            optimiser.grad_partitions_flat_buffer.zero_()
        if self.config.offload:
            optimiser.norm_for_param_grads.clear()
            for share in optimiser.fp32_partitioned_groups_flat if stage == 3 else optimiser.single_partition_of_fp32_groups:
                if share.grad is not None:
                    share.grad.zero_()

    def _groups(self) -> list[dict[str, Any]]:
        return [*self._deepspeed.optimizer.param_groups, *(self._experts.optimiser.param_groups if self._experts else ())]

    def _backward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        terms = self._deepspeed(batch, generator)
        self._deepspeed.backward(terms["loss"] * self.config.weight(terms))
        if not self._deepspeed.is_gradient_accumulation_boundary():
            self._deepspeed.step()
        return terms

    def _update(self, judge: Judge) -> float:
        self._judge = judge
        self._deepspeed.step()
        if self._experts:
            limit = self.config.clip_norm or ANY_NORM
            self._experts.step(self._is_taken, limit / (self._norm + 1e-6))
        return self._norm

    def _let_norms_be_judged(self) -> None:
        """Have every stage ask before it takes a step; one that is refused goes the way of an overflow (DeepSpeed 0.19).

        By itself stages 0 and 3 leave steps out that are not finite and say nothing, and stages 1 and 2 take them in bf16.
        """
        optimiser, stage = self._deepspeed.optimizer, self.config.zero_stage
        refused = torch.tensor(-1.0, device=self.device)  # what DeepSpeed makes of a norm that is not finite

        def is_taken(norm: float) -> bool:
            """Judge a step by the norm of all gradients, of which DeepSpeed has measured `norm`."""
            self._norm = norm if norm >= 0 else math.nan
            if self._experts:
                self._norm = math.hypot(self._norm, self._experts.norm())
            self._is_taken = self._judge(self._norm)
            return self._is_taken

        if stage == 3:
            norms = optimiser._get_norm_groups

            def judged_groups() -> list[torch.Tensor]:
                found = norms()
                return found if is_taken(float(combine_grad_norm_groups(found))) else [refused]

            optimiser._get_norm_groups = judged_groups
        elif stage:
            measure = optimiser.scaled_global_norm

            def judged_norm() -> torch.Tensor:
                norm = measure()
                if not is_taken(float(norm)):
                    return refused
                return norm.new_tensor(self._norm) if self._experts else norm

            optimiser.scaled_global_norm = judged_norm
            optimiser.check_overflow = lambda partition_gradients: None  # the norm shows it
        elif self.config.bf16:
            trained = [p for group in optimiser.fp16_groups for p in group]
            optimiser.overflow_checker.check = lambda: not is_taken(_norm(trained))
            if self._experts:  # it clips by the norm of what it knows
                clip = optimiser.unscale_and_clip_grads
                optimiser.unscale_and_clip_grads = lambda norm, *given: clip(self._norm, *given)
        else:
            take, limit = optimiser.step, self.config.clip_norm or ANY_NORM
            trained = [p for group in optimiser.param_groups for p in group["params"]]
            self._deepspeed.clip_fp32_gradients = lambda: None

            def judged_step() -> None:
                norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
                if is_taken(float(norm)):
                    nn.utils.clip_grads_with_norm_(trained, limit, norm.new_tensor(self._norm) if self._experts else norm)
                    take()

            optimiser.step = judged_step

    def save(self, folder: str, next_step: int) -> None:
        # DeepSpeed needs this entry to convert stages 1 and 2 to another world size (0.19).
        state = {"next_step": next_step, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        state["spikes"] = self._spikes.state()
        self._deepspeed.save_checkpoint(folder, tag=TAG, client_state=state)
        if self._experts:
            self._experts.save(folder)
        if dist.get_rank() == 0:
            (Path(folder) / RANKS).write_text(str(dist.get_world_size()))

    def load(self, folder: str) -> int:
        """Restore what `save` wrote, on as many ranks or others, of one machine or many; return the next step.

        With as many ranks the run goes on bit by bit. `folder` is left as it is.
        """
        written = int((Path(folder) / RANKS).read_text())
        if written == dist.get_world_size() or not self.config.zero_stage:
            _, state = self._deepspeed.load_checkpoint(folder, tag=TAG)
        else:
            with _for_any_ranks(folder, self.config.zero_stage) as converted:
                self._deepspeed._config.load_universal_checkpoint = True
                _, state = self._deepspeed.load_checkpoint(converted, tag=TAG)
                self._deepspeed._config.load_universal_checkpoint = False
                # Stage 3 gives all groups one and the same counter of steps, which each of them would move (DeepSpeed 0.19).
                for facts in self._deepspeed.optimizer.optimizer.state.values():
                    facts |= {name: value.clone() for name, value in facts.items() if name == "step"}
                self._restore_untrained(torch.load(Path(converted) / WHOLE, mmap=True, weights_only=True))
        if self._experts:
            self._experts.load(folder)
        self._spikes.restore(state["spikes"])
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
        if self.config.zero_stage < 3:
            yield
            return
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        held = [p for p in self.objective.parameters() if not p.requires_grad]
        with GatheredParameters(trained), GatheredParameters(held, modifier_rank=0):
            yield

    def _unfused_masters(self) -> dict[int, torch.Tensor]:
        """Return the masters of stage 0 in bf16 by the id of their parameter; nothing elsewhere."""
        optimiser = self._deepspeed.optimizer
        found: dict[int, torch.Tensor] = {}
        if isinstance(optimiser, FP16_UnfusedOptimizer):
            for low, high in zip(optimiser.fp16_groups, optimiser.fp32_groups, strict=True):
                found |= {id(one): other for one, other in zip(low, high, strict=True)}
        return found

    @torch.no_grad()
    def begin_with(self, weights: dict[str, torch.Tensor]) -> None:
        # DeepSpeed (0.19) makes masters of the weights after it has rounded these to bf16.
        masters = self._unfused_masters()
        for name, parameter in self.objective.named_parameters():
            if parameter.requires_grad and name in weights:
                exact = weights[name].to(self.device, torch.float32)
                if self.config.zero_stage:
                    safe_set_full_fp32_param(parameter, exact)
                elif id(parameter) in masters:
                    masters[id(parameter)].copy_(exact)

    def gather_master_weights(self) -> dict[str, torch.Tensor]:
        weights, master = {}, self._unfused_masters()
        for name, parameter in self.objective.named_parameters():
            if parameter.requires_grad:
                full = safe_get_full_fp32_param(parameter) if self.config.zero_stage else master.get(id(parameter), parameter)
                weights[name] = full.detach().cpu().clone()
        with self._whole():
            held = {name: p.detach().float() for name, p in self.objective.named_parameters() if not p.requires_grad}
            held |= dict(self.objective.named_buffers())
            weights |= {name: tensor.detach().cpu().clone() for name, tensor in held.items()}
        return weights | (self._experts.gather() if self._experts else {})


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


def _norm(parameters: list[nn.Parameter]) -> float:
    return float(nn.utils.get_total_norm([p.grad.float() for p in parameters if p.grad is not None]))
