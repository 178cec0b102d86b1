"""Mixture of experts in place of a block's MLP, in plain torch.

This file decides which expert sees which token and what happens when an expert is full. It leaves to `swin.py` which
blocks have experts. Shapes are static in training (sort, index, one padded batched product, no loop over experts), and
all experts are stacked in one parameter, so an expert without tokens still takes part on every rank.
Legend: N tokens, D width, H hidden width, E experts, K choices per token, P places per expert, A = K*N assignments of a
token to an expert, all first choices before all second ones.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InputError
from models.gather import gather_rows


@dataclass(frozen=True)
class MoEConfig:
    """num_experts, choices per token (1: Switch, 2: GShard), and room per expert relative to an even share."""

    num_experts: int = 8
    top_k: int = 1
    capacity_factor: float = 1.25

    def __post_init__(self) -> None:
        if self.top_k not in (1, 2) or self.num_experts < self.top_k or self.capacity_factor <= 0:
            raise InputError(
                f"mixture of experts has num_experts {self.num_experts}, top_k {self.top_k}, capacity_factor "
                f"{self.capacity_factor}, expected top_k 1 or 2, num_experts >= top_k, capacity_factor > 0"
            )


class MixtureOfExperts(nn.Module):
    """Token-choice mixture of two-layer GELU experts.

    Top-1 as Fedus et al. 2021 (Switch, arXiv 2101.03961), top-2 as Lepikhin et al. 2020 (GShard, arXiv 2006.16668).

    In training an expert holds `capacity(N)` tokens; later ones are dropped: their output is 0 and the block's residual
    carries them on. In evaluation nothing is dropped, so an embedding does not depend on its neighbours in the batch.
    """

    def __init__(self, config: MoEConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        experts = config.num_experts
        self.router = nn.Parameter(torch.empty(experts, width))
        self.weight_in_EDH = nn.Parameter(torch.empty(experts, width, hidden))
        self.bias_in_E1H = nn.Parameter(torch.empty(experts, 1, hidden))
        self.weight_out_EHD = nn.Parameter(torch.empty(experts, hidden, width))
        self.bias_out_E1D = nn.Parameter(torch.empty(experts, 1, width))
        self.last_load: Tensor | None = None
        """(E,) float32, share of the last call's assignments that chose each expert, before dropping."""

    def capacity(self, num_tokens: int) -> int:
        """Return the number of tokens one expert holds in training."""
        even_share = num_tokens * self.config.top_k / self.config.num_experts
        return max(1, math.ceil(self.config.capacity_factor * even_share))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' output (N, D) and the balance loss, a float32 scalar."""
        num_experts, top_k, num_tokens = self.config.num_experts, self.config.top_k, x_ND.shape[0]
        probability_NE = F.linear(x_ND.float(), self.router.float()).softmax(-1)
        gate_NK, choice_NK = probability_NE.topk(top_k, dim=-1)
        if top_k > 1:
            gate_NK = gate_NK / gate_NK.sum(-1, keepdim=True)
        expert_A, gate_A = choice_NK.t().flatten(), gate_NK.t().flatten()

        count_E = (expert_A[:, None] == torch.arange(num_experts, device=x_ND.device)).sum(0)
        places = self.capacity(num_tokens) if self.training else int(count_E.max())
        order_A = expert_A.argsort(stable=True)
        start_E = count_E.cumsum(0) - count_E
        place_A = torch.empty_like(order_A)
        place_A[order_A] = torch.arange(len(order_A), device=x_ND.device)
        place_A -= start_E[expert_A]
        is_kept_A = place_A < places
        slot_A = expert_A * places + place_A.clamp_max(places - 1)

        place_P = torch.arange(places, device=x_ND.device)
        is_filled_EP = place_P < count_E[:, None]
        # Empty places read some token; their output goes nowhere, so it costs no zeroing and carries no gradient.
        source_EP = order_A[(start_E[:, None] + place_P).clamp_max(len(order_A) - 1)]
        source, is_filled = source_EP.flatten(), is_filled_EP.flatten()

        x_AD = x_ND if top_k == 1 else x_ND.repeat(top_k, 1)
        given_EPD = gather_rows(x_AD, source, slot_A, is_kept_A).view(num_experts, places, -1)
        hidden_EPH = F.gelu(torch.baddbmm(self.bias_in_E1H, given_EPD, self.weight_in_EDH))
        answer_EPD = torch.baddbmm(self.bias_out_E1D, hidden_EPH, self.weight_out_EHD)
        answer_AD = gather_rows(answer_EPD.flatten(0, 1), slot_A, source, is_filled)
        output_AD = answer_AD * (gate_A * is_kept_A).to(answer_AD.dtype)[:, None]
        output_ND = output_AD if top_k == 1 else output_AD.view(top_k, num_tokens, -1).sum(0)

        self.last_load = (count_E / len(order_A)).detach()
        return output_ND, balance_loss(probability_NE, self.last_load)


def balance_loss(probability_NE: Tensor, load_E: Tensor) -> Tensor:
    """Return E * sum_e f_e P_e: 1 where load f and mean router probability P are even, E where one expert takes all."""
    return probability_NE.shape[1] * (load_E * probability_NE.mean(0)).sum()
