"""One optimiser step under DeepSpeed ZeRO: what is wrapped, with which precision, how it is saved."""

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
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import nn

from cluster.optimiser import OptimiserConfig
from models.batch import Batch
from models.flops import FlopCounter
from pipeline.errors import RunFailed

TAG = "state"
RANKS = "ranks.txt"
"""In a checkpoint, how many ranks wrote it."""
WHOLE = "whole.pt"
"""In what a checkpoint is converted to, all weights and buffers."""
ANY_NORM = 1e12
"""Stands for no clipping: without a limit DeepSpeed (0.19) does not measure the gradient's norm at stage 0."""


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
