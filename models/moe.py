"""Mixture of experts in place of a block's MLP, in plain torch.

This file decides which expert sees what of which token and what happens when an expert is full. It leaves to `vit.py` and
`swin.py` which blocks have experts. Shapes are static in training (sort, index, one padded batched product, no loop over
experts), and all experts are stacked in one parameter, so an expert without tokens still takes part on every rank. Experts may
be shared out over ranks: places are filled where the tokens are, and travel to the experts and back.
Legend: B samples, N tokens of a sample, M = B*N tokens, D width, H hidden width, E experts, K choices per token, P places per
expert, S slots of all experts, A = K*M assignments of a token to an expert, all first choices before all second ones.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.distributed import from_owners, largest, to_owners
from models.errors import InputError
from models.gather import gather_rows

EXPERT_WEIGHTS = ("weight_in_EDH", "bias_in_E1H", "weight_out_EHD", "bias_out_E1D")
"""Of a mixture, the weights that are some expert's own: its first dimension is E."""


@dataclass(frozen=True)
class MoEConfig:
    """How many experts, and how tokens come to them.

    routing "token": each token goes to its top_k experts (1: Switch, 2: GShard), which have room for capacity_factor times an
    even share. routing "soft": each expert is given slots mixtures of all tokens of a sample.
    """

    num_experts: int = 8
    top_k: int = 1
    capacity_factor: float = 1.25
    routing: Literal["token", "soft"] = "token"
    slots: int = 16

    def __post_init__(self) -> None:
        if self.top_k not in (1, 2) or self.num_experts < self.top_k or self.capacity_factor <= 0 or self.slots < 1:
            raise InputError(
                f"mixture of experts has num_experts {self.num_experts}, top_k {self.top_k}, capacity_factor "
                f"{self.capacity_factor}, slots {self.slots}, expected top_k 1 or 2, num_experts >= top_k, capacity_factor > 0, "
                f"slots >= 1"
            )


class MixtureOfExperts(nn.Module):
    """Two-layer GELU experts side by side; subclasses bring tokens to them and answers back."""

    sees_all = False
    """Whether every expert answers every token, unused answers counting 0: shapes then do not depend on values (`graph.py`)."""

    def __init__(self, config: MoEConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        experts = config.num_experts
        self.router = nn.Parameter(torch.empty(experts * (config.slots if config.routing == "soft" else 1), width))
        self.weight_in_EDH = nn.Parameter(torch.empty(experts, width, hidden))
        self.bias_in_E1H = nn.Parameter(torch.empty(experts, 1, hidden))
        self.weight_out_EHD = nn.Parameter(torch.empty(experts, hidden, width))
        self.bias_out_E1D = nn.Parameter(torch.empty(experts, 1, width))
        self.is_shared_out = False
        self.last_share_BNE: Tensor | None = None
        """Of each token of the last call, the share that each expert had of it, before dropping; 0 where it was no key."""

    def forward(self, x_BND: Tensor, is_key_BN: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the experts' output (B, N, D) and the balance loss, a float32 scalar, where routing needs one.

        Tokens that are no keys change nothing for others; what becomes of them means nothing.
        """
        raise NotImplementedError

    @property
    def num_idle_parameters(self) -> int:
        """Parameters of the experts that a token is not sent to."""
        return 0

    def share_out(self, rank: int, num_ranks: int) -> dict[str, nn.Parameter]:
        """Keep the experts of `rank` alone; return their weights, which are no parameters of this module any more.

        From then on all ranks must call it together, with as many places.
        """
        own = {name: nn.Parameter(self.get_parameter(name).detach().chunk(num_ranks)[rank].clone()) for name in EXPERT_WEIGHTS}
        for name, parameter in own.items():
            delattr(self, name)
            self.__dict__[name] = parameter
        self.is_shared_out = True
        return own

    def answer(self, given_EPD: Tensor) -> Tensor:
        """Return what every expert makes of its own places (E, P, D), wherever it is."""
        own_EPD = to_owners(given_EPD) if self.is_shared_out else given_EPD
        hidden_EPH = F.gelu(torch.baddbmm(self.bias_in_E1H, own_EPD, self.weight_in_EDH))
        answer_EPD = torch.baddbmm(self.bias_out_E1D, hidden_EPH, self.weight_out_EHD)
        return from_owners(answer_EPD) if self.is_shared_out else answer_EPD


class TokenChoice(MixtureOfExperts):
    """Tokens choose experts.

    Top-1 as Fedus et al. 2021 (Switch, arXiv 2101.03961), top-2 as Lepikhin et al. 2020 (GShard, arXiv 2006.16668).

    In training an expert holds `capacity(M)` tokens of the batch; later ones are dropped: their output is 0 and the block's
    residual carries them on. In evaluation nothing is dropped, so an embedding does not depend on its neighbours in the batch.
    """

    @property
    def num_idle_parameters(self) -> int:
        held = sum(parameter.numel() for parameter in self.parameters()) - self.router.numel()
        return held * (self.config.num_experts - self.config.top_k) // self.config.num_experts

    def capacity(self, num_tokens: int) -> int:
        """Return the number of tokens one expert holds in training."""
        even_share = num_tokens * self.config.top_k / self.config.num_experts
        return max(1, math.ceil(self.config.capacity_factor * even_share))

    def forward(self, x_BND: Tensor, is_key_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        num_experts, top_k = self.config.num_experts, self.config.top_k
        x_MD = x_BND.flatten(0, 1)
        probability_ME = F.linear(x_MD.float(), self.router.float()).softmax(-1)
        gate_MK, choice_MK = probability_ME.topk(top_k, dim=-1)
        if top_k > 1:
            gate_MK = gate_MK / gate_MK.sum(-1, keepdim=True)
        if self.sees_all:
            return self._answered_by_all(x_BND, gate_MK, choice_MK), probability_ME.new_zeros(())
        is_key_M = x_MD.new_ones(len(x_MD), dtype=torch.bool) if is_key_BN is None else is_key_BN.flatten()
        # Tokens that are no keys are sent to an expert that does not exist: they come last and take nobody's place.
        expert_A = torch.where(is_key_M[:, None], choice_MK, num_experts).t().flatten()
        is_chosen_AE = expert_A[:, None] == torch.arange(num_experts, device=x_MD.device)
        count_E = is_chosen_AE.sum(0)

        places = self.capacity(len(x_MD)) if self.training else max(1, int(largest(count_E.max(), self.is_shared_out)))
        order_A = expert_A.argsort(stable=True)
        start_E = count_E.cumsum(0) - count_E
        place_A = torch.empty_like(order_A)
        place_A[order_A] = torch.arange(len(order_A), device=x_MD.device)
        place_A -= F.pad(start_E, (0, 1))[expert_A]
        is_kept_A = (place_A < places) & (expert_A < num_experts)
        slot_A = expert_A.clamp_max(num_experts - 1) * places + place_A.clamp_max(places - 1)

        place_P = torch.arange(places, device=x_MD.device)
        is_filled_EP = place_P < count_E[:, None]
        # Empty places read some token; their output goes nowhere, so it costs no zeroing and carries no gradient.
        source_EP = order_A[(start_E[:, None] + place_P).clamp_max(len(order_A) - 1)]
        source, is_filled = source_EP.flatten(), is_filled_EP.flatten()

        x_AD = x_MD if top_k == 1 else x_MD.repeat(top_k, 1)
        given_EPD = gather_rows(x_AD, source, slot_A, is_kept_A).view(num_experts, places, -1)
        answer_AD = gather_rows(self.answer(given_EPD).flatten(0, 1), slot_A, source, is_filled)
        output_AD = answer_AD * (gate_MK.t().flatten() * is_kept_A).to(answer_AD.dtype)[:, None]
        output_MD = output_AD if top_k == 1 else output_AD.view(top_k, len(x_MD), -1).sum(0)

        share_ME = is_chosen_AE.view(top_k, -1, num_experts).float().mean(0)
        self.last_share_BNE = share_ME.view(*x_BND.shape[:2], num_experts).detach()
        load_E = count_E / count_E.sum().clamp_min(1)
        return output_MD.view_as(x_BND), balance_loss(probability_ME, load_E, None if is_key_BN is None else is_key_M)

    def _answered_by_all(self, x_BND: Tensor, gate_MK: Tensor, choice_MK: Tensor) -> Tensor:
        """Return what `forward` does in evaluation, from all experts' answers to all tokens."""
        answer_EMD = self.answer(x_BND.flatten(0, 1).expand(self.config.num_experts, -1, -1))
        is_chosen_MKE = choice_MK[..., None] == torch.arange(self.config.num_experts, device=x_BND.device)
        gate_ME = (gate_MK[..., None] * is_chosen_MKE).sum(1).to(answer_EMD.dtype)
        return (answer_EMD * gate_ME.t()[..., None]).sum(0).view_as(x_BND)


class SoftRouting(MixtureOfExperts):
    """Experts are given mixtures of tokens, tokens mixtures of answers (Soft MoE, Puigcerver et al. 2023, arXiv 2308.00951).

    A slot takes softmax over the sample's tokens of them, a token softmax over all slots of their answers, by the same logits:
    products of unit vectors, times a learned scale. Every expert has a part in every token; there is no balance to keep.
    """

    def __init__(self, config: MoEConfig, width: int, hidden: int) -> None:
        super().__init__(config, width, hidden)
        self.scale = nn.Parameter(torch.empty(1))

    def forward(self, x_BND: Tensor, is_key_BN: Tensor | None = None) -> tuple[Tensor, None]:
        experts, slots, batch = self.config.num_experts, self.config.slots, x_BND.shape[0]
        routes_SD = self.scale.float() * F.normalize(self.router.float(), dim=-1)
        logits_BNS = F.linear(F.normalize(x_BND.float(), dim=-1), routes_SD)
        taking_BNS = logits_BNS
        if is_key_BN is not None:
            # Not -inf: a sample without any key would be NaN.
            taking_BNS = logits_BNS.masked_fill(~is_key_BN[..., None], torch.finfo(torch.float32).min)
        dispatch_BNS, combine_BNS = taking_BNS.softmax(1), logits_BNS.softmax(2)
        given_BSD = dispatch_BNS.to(x_BND.dtype).transpose(1, 2) @ x_BND
        given_EPD = given_BSD.unflatten(1, (experts, slots)).transpose(0, 1).flatten(1, 2)
        answer_BSD = self.answer(given_EPD).unflatten(1, (batch, slots)).transpose(0, 1).flatten(1, 2)
        share_BNE = combine_BNS.detach().unflatten(2, (experts, slots)).sum(-1)
        self.last_share_BNE = share_BNE if is_key_BN is None else share_BNE * is_key_BN[..., None]
        return combine_BNS.to(x_BND.dtype) @ answer_BSD, None


def build_experts(config: MoEConfig, width: int, hidden: int) -> MixtureOfExperts:
    """Return the experts of one block."""
    return (SoftRouting if config.routing == "soft" else TokenChoice)(config, width, hidden)


def balance_loss(probability_ME: Tensor, load_E: Tensor, is_key_M: Tensor | None = None) -> Tensor:
    """Return E * sum_e f_e P_e: 1 where load f and mean router probability P are even, E where one expert takes all.

    P is the mean over tokens that are keys, by default all.
    """
    mean_E = probability_ME.mean(0)
    if is_key_M is not None:
        mean_E = (probability_ME * is_key_M[:, None]).sum(0) / is_key_M.sum().clamp_min(1)
    return probability_ME.shape[1] * (load_E * mean_E).sum()
