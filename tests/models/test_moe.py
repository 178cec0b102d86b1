import pytest
import torch
import torch.nn.functional as F

from models.errors import InputError
from models.health import expert_load
from models.initialise import initialise
from models.moe import MoEConfig, SoftRouting, TokenChoice, balance_loss, build_experts


def build(top_k: int, capacity_factor: float, generator: torch.Generator, num_experts: int = 4) -> TokenChoice:
    module = TokenChoice(MoEConfig(num_experts, top_k, capacity_factor), width=6, hidden=10)
    initialise(module, generator)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def naive(module: TokenChoice, x: torch.Tensor, places: int) -> tuple[torch.Tensor, int]:
    """Token by token, all first choices before second ones, as the papers tell it; and how many were dropped."""
    top_k = module.config.top_k
    output, used, dropped = [torch.zeros(x.shape[1]) for _ in x], [0] * module.config.num_experts, 0
    probability = (x @ module.router.t()).softmax(-1)
    for choice in range(top_k):
        for token in range(len(x)):
            gates, experts = probability[token].topk(top_k)
            expert = int(experts[choice])
            if used[expert] == places:
                dropped += 1
                continue
            used[expert] += 1
            gate = gates[choice] if top_k == 1 else gates[choice] / gates.sum()
            hidden = F.gelu(x[token] @ module.weight_in_EDH[expert] + module.bias_in_E1H[expert, 0])
            answer = hidden @ module.weight_out_EHD[expert] + module.bias_out_E1D[expert, 0]
            output[token] = output[token] + gate * answer
    return torch.stack(output), dropped


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("capacity_factor", [0.5, 1.25, 8.0])
def test_equals_a_loop_over_tokens(top_k: int, capacity_factor: float, generator: torch.Generator) -> None:
    module = build(top_k, capacity_factor, generator)
    x = torch.randn(30, 6, generator=generator, requires_grad=True)
    expected, dropped = naive(module, x, module.capacity(30))
    assert (dropped > 0) == (capacity_factor < 8)
    output, _ = module(x.view(3, 10, 6))
    output = output.flatten(0, 1)
    torch.testing.assert_close(output, expected)
    wanted = [x, *module.parameters()]
    for fast, slow in zip(torch.autograd.grad(output.sin().sum(), wanted), torch.autograd.grad(expected.sin().sum(), wanted)):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2])
def test_evaluation_drops_nothing(top_k: int, generator: torch.Generator) -> None:
    module = build(top_k, 0.25, generator).eval()
    x = torch.randn(30, 6, generator=generator)
    expected, _ = naive(module, x, places=30)
    torch.testing.assert_close(module(x[None])[0][0], expected)
    torch.testing.assert_close(module(x[None, :7])[0][0], expected[:7])


def test_capacity() -> None:
    module = TokenChoice(MoEConfig(8, 1, 1.25), 4, 4)
    assert module.capacity(512) == 80
    assert module.capacity(1) == 1
    assert TokenChoice(MoEConfig(8, 2, 1.25), 4, 4).capacity(512) == 160


def test_balance_loss_by_hand() -> None:
    even = torch.full((12, 4), 0.25)
    assert balance_loss(even, torch.full((4,), 0.25)) == 1
    one_for_all = torch.tensor([[1.0, 0, 0, 0]]).expand(12, 4)
    assert balance_loss(one_for_all, torch.tensor([1.0, 0, 0, 0])) == 4
    # 2 experts, loads 3/4 and 1/4, mean probabilities 0.6 and 0.4: 2 * (0.45 + 0.1)
    torch.testing.assert_close(balance_loss(torch.tensor([[0.6, 0.4]]), torch.tensor([0.75, 0.25])), torch.tensor(1.1))


def test_balance_loss_is_one_under_even_routing() -> None:
    module = TokenChoice(MoEConfig(4, 1, 1.25), 4, 4)
    initialise(module)
    module.router.data = torch.eye(4)
    _, balance = module(torch.eye(4).repeat(5, 1)[None])
    torch.testing.assert_close(balance, torch.tensor(1.0))
    torch.testing.assert_close(expert_load(module)[""], torch.full((1, 4), 0.25))


def test_expert_without_tokens_has_zero_gradient(generator: torch.Generator) -> None:
    module = build(1, 4.0, generator)
    module.router.data.zero_()
    module.router.data[0] = 100
    output, balance = module(torch.rand(1, 10, 6, generator=generator) + 0.1)
    (output.sum() + balance).backward()
    assert expert_load(module)[""].tolist() == [[1, 0, 0, 0]]
    for parameter in (module.weight_in_EDH, module.bias_in_E1H, module.weight_out_EHD, module.bias_out_E1D):
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1:].abs().sum() == 0


def test_load_counts_choices_before_dropping(generator: torch.Generator) -> None:
    module = build(2, 0.1, generator)
    module(torch.randn(2, 20, 6, generator=generator))
    assert module.last_share_BNE is not None
    torch.testing.assert_close(module.last_share_BNE.sum(-1), torch.ones(2, 20))
    assert "last_share_BNE" not in module.state_dict()


def test_refuses_impossible_shapes() -> None:
    with pytest.raises(InputError, match=r"top_k 3.*expected top_k 1 or 2"):
        MoEConfig(top_k=3)


def soft(generator: torch.Generator, slots: int = 2) -> SoftRouting:
    module = SoftRouting(MoEConfig(3, routing="soft", slots=slots), width=6, hidden=10).double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator).double())
    return module


def naive_soft(module: SoftRouting, x_ND: torch.Tensor) -> torch.Tensor:
    """One sample, slot by slot, as the paper's equations tell it."""
    unit = [row / row.norm() for row in x_ND]
    routes = [module.scale * route / route.norm() for route in module.router]
    logits = torch.stack([torch.stack([(token @ route).squeeze() for route in routes]) for token in unit])
    answers = []
    for slot in range(len(routes)):
        weights = logits[:, slot].exp() / logits[:, slot].exp().sum()
        given = sum(weight * token for weight, token in zip(weights, x_ND))
        expert = slot // module.config.slots
        hidden = F.gelu(given @ module.weight_in_EDH[expert] + module.bias_in_E1H[expert, 0])
        answers.append(hidden @ module.weight_out_EHD[expert] + module.bias_out_E1D[expert, 0])
    outputs = []
    for token in range(len(x_ND)):
        weights = logits[token].exp() / logits[token].exp().sum()
        outputs.append(sum(weight * answer for weight, answer in zip(weights, answers)))
    return torch.stack(outputs)


def test_soft_routing_is_the_formula(generator: torch.Generator) -> None:
    module = soft(generator)
    x = torch.randn(2, 5, 6, generator=generator).double().requires_grad_()
    output, balance = module(x)
    expected = torch.stack([naive_soft(module, sample) for sample in x])
    assert balance is None
    # The logits are float32 whatever the tokens are.
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)
    wanted = [x, *module.parameters()]
    for fast, slow in zip(torch.autograd.grad(output.sin().sum(), wanted), torch.autograd.grad(expected.sin().sum(), wanted)):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
        assert slow.abs().sum() > 0


def test_soft_routing_uses_every_expert_whatever_the_router_says(generator: torch.Generator) -> None:
    module = soft(generator)
    module.router.data[:] = module.router.data[:1]
    module(torch.randn(2, 5, 6, generator=generator).double())[0].sum().backward()
    for parameter in (module.weight_in_EDH, module.weight_out_EHD):
        assert parameter.grad is not None
        assert (parameter.grad.abs().flatten(1).sum(1) > 0).all()
    torch.testing.assert_close(expert_load(module)[""], torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("config", [MoEConfig(3, routing="soft", slots=2), MoEConfig(3, 1, 0.5), MoEConfig(3, 2, 0.5)])
@pytest.mark.parametrize("is_training", [True, False])
def test_tokens_that_are_no_keys_change_nothing_for_others(
    config: MoEConfig, is_training: bool, generator: torch.Generator
) -> None:
    module = build_experts(config, width=6, hidden=10).train(is_training)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(3, 8, 6, generator=generator)
    is_key = torch.rand(3, 8, generator=generator) < 0.6
    is_key[1] = False
    one, balance = module(x, is_key)
    other, other_balance = module(torch.where(is_key[..., None], x, -7.0), is_key)
    assert torch.equal(one[is_key], other[is_key])
    assert balance is other_balance is None or torch.equal(balance, other_balance)
    assert torch.isfinite(one).all()
    # The same tokens as keys do change something, so the mask is looked at.
    assert not torch.allclose(module(x)[0][is_key], one[is_key]) or (not is_training and config.routing == "token")


def test_share_of_tokens_by_sensor(generator: torch.Generator) -> None:
    """Tokens of sensor 0 go to expert 0, those of sensor 1 to experts 0 and 1 in turn; a class token stands before them."""
    module = build(1, 8.0, generator)
    module.router.data.zero_()
    module.router.data[0, 0], module.router.data[1, 1] = 50, 50
    first, second = torch.eye(6)[0], torch.eye(6)[1]
    module(torch.stack([second, first, first, first, second]).expand(2, -1, -1))
    load = expert_load(module, torch.tensor([0, 0, 1, 1]), num_sensors=2)[""]
    assert load.tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0]]
    of_sample = torch.tensor([[0, -1, -1, -1], [-1, -1, -1, 1]])
    assert expert_load(module, of_sample, num_sensors=2)[""].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
