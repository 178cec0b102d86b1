import torch

from models.initialise import initialise
from models.moe import MoEConfig
from models.swin import Block, PatchMerging, Swin, SwinConfig, WindowAttention
from models.windows import window_layout

CPU = torch.device("cpu")


def lively(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Parameters large enough that every path shows."""
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return module


def naive_attention(module: WindowAttention, x: torch.Tensor, side: int, window: int) -> torch.Tensor:
    """One window of side * side tokens (n, D), pair by pair."""
    n, width = x.shape
    heads, size = module.num_heads, width // module.num_heads
    q, k, v = (module.qkv(x)[:, i * width : (i + 1) * width] for i in range(3))
    mixed = torch.zeros(n, width)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(n):
            logits = torch.empty(n)
            for j in range(n):
                dy, dx = i // side - j // side, i % side - j % side
                row = (dy + window - 1) * (2 * window - 1) + dx + window - 1
                logits[j] = q[i, part] @ k[j, part] / size**0.5 + module.position[row, h]
            mixed[i, part] = logits.softmax(0) @ v[:, part]
    return module.project(mixed)


def test_window_attention_equals_pairs(generator: torch.Generator) -> None:
    for side in (3, 2):  # a window of the configured size, and a grid smaller than it
        module = lively(WindowAttention(8, 2, 3), generator)
        x = torch.randn(2, side * side, 8, generator=generator)
        output = module(x, window_layout((side, side), 3, True, CPU))
        for sample in range(2):
            torch.testing.assert_close(output[sample], naive_attention(module, x[sample], side, 3))


def through(block: Block, x_BYXD: torch.Tensor) -> torch.Tensor:
    """Return what the block makes of a grid of tokens."""
    grid = (x_BYXD.shape[1], x_BYXD.shape[2])
    return block(x_BYXD.flatten(1, 2), grid, block.layout(grid, CPU))[0].unflatten(1, grid)


def reached(grid: tuple[int, int], window: int, index: int, source: tuple[int, int], generator: torch.Generator) -> set:
    """Tokens whose output changes with the token at `source`."""
    block = lively(Block(SwinConfig(8, (2,), (2,), window), 0, index, 0.0), generator)
    x = torch.randn(1, *grid, 8, generator=generator)
    other = x.clone()
    other[0, source[0], source[1]] += torch.randn(8, generator=generator)  # LayerNorm would not see a constant
    before, after = (through(block, t) for t in (x, other))
    return {(int(y), int(x)) for _, y, x in (before != after).any(-1).nonzero()}


def square(rows: range, columns: range) -> set:
    return {(y, x) for y in rows for x in columns}


def test_windows_mix_only_neighbours(generator: torch.Generator) -> None:
    plain, shifted = 0, 1
    assert reached((8, 8), 4, plain, (1, 6), generator) == square(range(4), range(4, 8))
    # Shift by 2: regions 0-1, 2-5, 6-7 along each axis; corners are together in memory but strangers on the ground.
    assert reached((8, 8), 4, shifted, (3, 4), generator) == square(range(2, 6), range(2, 6))
    assert reached((8, 8), 4, shifted, (0, 0), generator) == square(range(2), range(2))
    assert reached((8, 8), 4, shifted, (7, 3), generator) == square(range(6, 8), range(2, 6))


def test_windows_on_grids_that_do_not_divide(generator: torch.Generator) -> None:
    assert reached((6, 5), 4, 0, (5, 4), generator) == {(4, 4), (5, 4)}
    assert reached((6, 5), 4, 1, (5, 4), generator) == square(range(2, 6), range(2, 5))
    assert reached((6, 5), 4, 1, (0, 0), generator) == square(range(2), range(2))


def test_no_shift_on_a_grid_of_one_window(generator: torch.Generator) -> None:
    assert reached((4, 4), 4, 1, (0, 0), generator) == square(range(4), range(4))
    assert reached((3, 3), 4, 1, (0, 0), generator) == square(range(3), range(3))
    assert window_layout((4, 4), 4, True, CPU).order_N is None


def test_padding_does_not_show(generator: torch.Generator) -> None:
    """Each padded window alone gives what it gives in the grid: padding takes no attention."""
    block = lively(Block(SwinConfig(8, (2,), (2,), 4), 0, 0, 0.0), generator)
    x = torch.randn(1, 6, 4, 8, generator=generator)
    torch.testing.assert_close(through(block, x)[:, 4:], through(block, x[:, 4:]))


def test_layout_made_in_inference_mode_serves_training() -> None:
    config = SwinConfig(8, (2,), (2,), 3)
    swin = Swin(config)
    initialise(swin)
    with torch.inference_mode():
        swin(torch.zeros(1, 7, 7, 8))
    swin(torch.zeros(1, 7, 7, 8))[0][-1].sum().backward()


def test_merging_joins_four_neighbours() -> None:
    module = PatchMerging(1)
    with torch.no_grad():
        module.norm = torch.nn.Identity()
        module.reduce.weight.copy_(torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 0]]))
    x = torch.arange(9.0).view(1, 3, 3, 1)
    output = module(x)[0]
    assert output[..., 0].tolist() == [[0 + 1 + 3 + 4, 2 + 5], [6 + 7, 8]]
    assert output[..., 1].tolist() == [[1, 0], [7, 0]]


def test_stage_shapes_and_experts(generator: torch.Generator) -> None:
    swin = Swin(SwinConfig(8, (1, 2, 4), (1, 2, 4), 4, moe=MoEConfig(4), moe_stages=(2,)))
    initialise(swin, generator)
    maps, balance = swin(torch.randn(2, 9, 12, 8, generator=generator))
    assert [tuple(m.shape) for m in maps] == [(2, 9, 12, 8), (2, 5, 6, 16), (2, 3, 3, 32)]
    assert [type(block.mlp).__name__[:3] for block in swin.blocks] == ["Mlp"] * 4 + ["Tok", "Mlp", "Tok"]
    assert balance.dtype == torch.float32
    assert 1.8 < balance.item() < 4  # two mixtures of about 1 each at first


def test_drop_path_keeps_or_drops_whole_samples() -> None:
    block = Block(SwinConfig(8, (2,), (2,), 2), 0, 0, drop=0.5)
    change = block._thin(torch.ones(64, 3, 8), torch.Generator().manual_seed(0))
    assert set(change.flatten(1).unique(dim=0)[:, 0].tolist()) == {0.0, 2.0}
    again = block._thin(torch.ones(64, 3, 8), torch.Generator().manual_seed(0))
    assert torch.equal(change, again)
    assert torch.equal(block.eval()._thin(torch.ones(64, 3, 8), None), torch.ones(64, 3, 8))
