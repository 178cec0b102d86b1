"""Optimiser steps in plain torch on one processor or GPU: no Ray, no DeepSpeed, nothing between a person and the model.

For a debugger, for machines that have torch alone, and as what the others are measured against.
"""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.engine import Engine, Judge
from cluster.master import MasterWeights
from cluster.optimiser import OptimiserConfig
from models.batch import Batch

STATE = "bare.pt"


class BareEngine(Engine):
    """An objective in bf16 with float32 master weights, or all in float32. `accumulate`: micro-batches of one step."""

    def __init__(
        self,
        objective: nn.Module,
        config: OptimiserConfig,
        num_steps: int,
        accumulate: int = 1,
        device: torch.device | str = "cpu",
        counts_flops: bool = True,
    ):
        super().__init__(objective, config, num_steps, counts_flops)
        self._objective, self._device, self._accumulate = objective.to(device), torch.device(device), accumulate
        self._trained = MasterWeights(self._build(self._objective), config.bf16)
        if config.bf16:
            for parameter in self._objective.parameters():  # not buffers: statistics and averages stay in float32
                parameter.data = parameter.data.bfloat16()

    @property
    def objective(self) -> nn.Module:
        return self._objective

    @property
    def device(self) -> torch.device:
        return self._device

    def _groups(self) -> list[dict[str, Any]]:
        return self._trained.optimiser.param_groups

    def _backward(self, batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        terms = self._objective(batch, generator)
        (terms["loss"] * self.config.weight(terms) / self._accumulate).backward()
        return terms

    def _update(self, judge: Judge) -> float:
        self._trained.take_gradients()
        norm = float(nn.utils.clip_grad_norm_(self._trained.masters, self.config.clip_norm or math.inf))
        if judge(norm):
            self._trained.step()
        self._trained.forget_gradients()
        return norm

    def save(self, folder: str, next_step: int) -> None:
        state = {"next_step": next_step, "spikes": self._spikes.state(), "master": self._trained.masters}
        state |= {"objective": self._objective.state_dict(), "optimiser": self._trained.optimiser.state_dict()}
        torch.save(state, Path(folder) / f"{STATE}.part")
        os.replace(Path(folder) / f"{STATE}.part", Path(folder) / STATE)

    @torch.no_grad()
    def load(self, folder: str) -> int:
        state = torch.load(Path(folder) / STATE, map_location=self._device, weights_only=True)
        self._objective.load_state_dict(state["objective"])
        self._trained.optimiser.load_state_dict(state["optimiser"])
        for master, saved in zip(self._trained.masters, state["master"], strict=True):
            master.copy_(saved)
        self._spikes.restore(state["spikes"])
        return int(state["next_step"])

    def begin_with(self, weights: dict[str, torch.Tensor]) -> None:
        pass  # its masters were made of the objective before that was rounded to bf16

    def gather_master_weights(self) -> dict[str, torch.Tensor]:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self._objective.state_dict().items()}
        names = {id(parameter): name for name, parameter in self._objective.named_parameters()}
        masters = {names[id(p)]: m.detach().cpu().clone() for p, m in zip(self._trained.weights, self._trained.masters)}
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()} | masters
