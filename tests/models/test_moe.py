import pytest
import torch
import torch.nn.functional as F

from models.errors import InputError
from models.initialise import initialise
from models.moe import MixtureOfExperts, MoEConfig, balance_loss


def build(top_k: int, capacity_factor: float, generator: torch.Generator, num_experts: int = 4) -> MixtureOfExperts:
    module = MixtureOfExperts(MoEConfig(num_experts, top_k, capacity_factor), width=6, hidden=10)
    initialise(module, generator)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def naive(module: MixtureOfExperts, x: torch.Tensor, places: int) -> tuple[torch.Tensor, int]:
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
    output, _ = module(x)
    torch.testing.assert_close(output, expected)
    wanted = [x, *module.parameters()]
    for fast, slow in zip(torch.autograd.grad(output.sin().sum(), wanted), torch.autograd.grad(expected.sin().sum(), wanted)):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2])
def test_evaluation_drops_nothing(top_k: int, generator: torch.Generator) -> None:
    module = build(top_k, 0.25, generator).eval()
    x = torch.randn(30, 6, generator=generator)
    expected, _ = naive(module, x, places=30)
    torch.testing.assert_close(module(x)[0], expected)
    torch.testing.assert_close(module(x[:7])[0], expected[:7])


def test_capacity() -> None:
    module = MixtureOfExperts(MoEConfig(8, 1, 1.25), 4, 4)
    assert module.capacity(512) == 80
    assert module.capacity(1) == 1
    assert MixtureOfExperts(MoEConfig(8, 2, 1.25), 4, 4).capacity(512) == 160


def test_balance_loss_by_hand() -> None:
    even = torch.full((12, 4), 0.25)
    assert balance_loss(even, torch.full((4,), 0.25)) == 1
    one_for_all = torch.tensor([[1.0, 0, 0, 0]]).expand(12, 4)
    assert balance_loss(one_for_all, torch.tensor([1.0, 0, 0, 0])) == 4
    # 2 experts, loads 3/4 and 1/4, mean probabilities 0.6 and 0.4: 2 * (0.45 + 0.1)
    torch.testing.assert_close(balance_loss(torch.tensor([[0.6, 0.4]]), torch.tensor([0.75, 0.25])), torch.tensor(1.1))


def test_balance_loss_is_one_under_even_routing() -> None:
    module = MixtureOfExperts(MoEConfig(4, 1, 1.25), 4, 4)
    initialise(module)
    module.router.data = torch.eye(4)
    _, balance = module(torch.eye(4).repeat(5, 1))
    torch.testing.assert_close(balance, torch.tensor(1.0))
    torch.testing.assert_close(module.last_load, torch.full((4,), 0.25))


def test_expert_without_tokens_has_zero_gradient(generator: torch.Generator) -> None:
    module = build(1, 4.0, generator)
    module.router.data.zero_()
    module.router.data[0] = 100
    output, balance = module(torch.rand(10, 6, generator=generator) + 0.1)
    (output.sum() + balance).backward()
    assert module.last_load is not None
    assert module.last_load.tolist() == [1, 0, 0, 0]
    for parameter in (module.weight_in_EDH, module.bias_in_E1H, module.weight_out_EHD, module.bias_out_E1D):
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1:].abs().sum() == 0


def test_load_counts_choices_before_dropping(generator: torch.Generator) -> None:
    module = build(2, 0.1, generator)
    module(torch.randn(40, 6, generator=generator))
    assert module.last_load is not None
    assert float(module.last_load.sum()) == pytest.approx(1)
    assert "last_load" not in module.state_dict()


def test_refuses_impossible_shapes() -> None:
    with pytest.raises(InputError, match=r"top_k 3.*expected top_k 1 or 2"):
        MoEConfig(top_k=3)
