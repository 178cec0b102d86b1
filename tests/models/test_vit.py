import pytest
import torch
import torch.nn.functional as F

from models.errors import InputError
from models.initialise import initialise
from models.moe import MoEConfig
from models.vit import SIZES, Vit, VitConfig, attend, vit_size


def build(generator: torch.Generator, **options: object) -> Vit:
    vit = Vit(VitConfig(embed_dim=16, depth=4, num_heads=2, **options))  # type: ignore[arg-type]
    initialise(vit, generator)
    return vit


@pytest.mark.parametrize(
    ("size", "published"), [("small", 21_665_664), ("base", 85_798_656), ("large", 303_301_632), ("huge", 630_764_800)]
)
def test_sizes_have_the_published_parameters(size: str, published: int) -> None:
    """Published: with the patch embedding of RGB (16 px; huge: 14) and a table of positions for 224 px, without a head."""
    with torch.device("meta"):
        vit = Vit(vit_size(size))
    width, patch = SIZES[size][0], 14 if size == "huge" else 16
    stem, table = 3 * patch**2 * width + width, ((224 // patch) ** 2 + 1) * width
    assert sum(p.numel() for p in vit.parameters()) + stem + table == published


def test_attention_by_its_formula(generator: torch.Generator) -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    mask = torch.rand(2, 1, 1, 5, generator=generator) < 0.7
    mask[..., 0] = True
    expected = ((q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf)).softmax(-1) @ v
    assert torch.allclose(attend(q, k, v, mask), expected, atol=1e-6)


def test_attention_in_bfloat16_is_the_formula_and_nothing_to_look_at_is_nothing(generator: torch.Generator) -> None:
    """Within the rounding of bf16, values and gradients; the second sample has no key at all."""
    q, k, v = (torch.randn(3, 2, 9, 24, generator=generator, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    mask = torch.rand(3, 1, 1, 9, generator=generator) < 0.6
    mask[..., 0], mask[1] = True, False
    for given in (mask, None):
        found = attend(q, k, v, given)
        score = (q.double() @ k.double().transpose(-1, -2)) / 24**0.5
        score = score if given is None else score.masked_fill(~given, -torch.inf)
        expected = score.softmax(-1).nan_to_num(0.0) @ v.double()
        weight = torch.randn(found.shape, generator=generator, dtype=torch.double)
        if given is not None:
            assert not found[1].any()
            expected, found, weight = expected[::2], found[::2], weight[::2]
        torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)
        close = zip(
            torch.autograd.grad((found * weight).sum(), (q, k, v)), torch.autograd.grad((expected * weight).sum(), (q, k, v))
        )
        for one, other in close:
            torch.testing.assert_close(one, other, atol=0.06, rtol=0.05)


def test_what_is_no_key_changes_nothing(generator: torch.Generator) -> None:
    vit = build(generator, num_registers=2)
    tokens = torch.randn(2, 6, 16, generator=generator)
    is_key = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    other = tokens.clone()
    other[0, 4:] += 3
    (maps, prefix, _), (changed, changed_prefix, _) = vit(tokens, is_key), vit(other, is_key)
    assert torch.equal(prefix, changed_prefix)
    assert torch.equal(maps[-1][0, :4], changed[-1][0, :4])
    alone, _, _ = vit(tokens[:1, :4])
    assert torch.allclose(maps[-1][:1, :4], alone[-1], atol=1e-6)


def test_four_depths_a_prefix_and_experts(generator: torch.Generator) -> None:
    vit = build(generator, num_registers=3, moe=MoEConfig(num_experts=2))
    maps, prefix, balance = vit(torch.randn(2, 6, 16, generator=generator))
    assert [m.shape for m in maps] == [(2, 6, 16)] * 4
    assert prefix.shape == (2, 4, 16)
    assert float(balance) > 1.9  # two layers with experts, each about 1
    assert VitConfig(depth=12).taps == (2, 5, 8, 11)
    assert VitConfig(depth=2).taps == (0, 1)


def test_order_of_tokens_does_not_matter(generator: torch.Generator) -> None:
    vit, order = build(generator), torch.tensor([3, 0, 5, 1, 4, 2])
    tokens = torch.randn(2, 6, 16, generator=generator)
    assert torch.allclose(vit(tokens)[0][-1][:, order], vit(tokens[:, order])[0][-1], atol=1e-6)


def test_dropped_paths_follow_the_generator(generator: torch.Generator) -> None:
    vit = build(generator, drop_path=0.5).train()
    tokens = torch.randn(8, 6, 16, generator=generator)
    first, second = (vit(tokens, generator=torch.Generator().manual_seed(seed))[0][-1] for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, vit(tokens, generator=torch.Generator().manual_seed(1))[0][-1])
    with pytest.raises(ValueError, match="needs a generator"):
        vit(tokens)
    vit.eval()
    assert torch.equal(vit(tokens)[0][-1], vit(tokens)[0][-1])
    assert F.mse_loss(vit(tokens)[0][-1], first) > 0


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="embed_dim 10, expected a multiple of its 3 heads"):
        VitConfig(embed_dim=10)
    with pytest.raises(InputError, match="vit size 'giant' is unknown"):
        vit_size("giant")
