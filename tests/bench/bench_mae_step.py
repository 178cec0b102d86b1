"""A whole MAE step on CPU, ours in bf16 beside the public formulation in float32: `python -m tests.bench.bench_mae_step`.

Both have the same shape, weights, tiles, masks, loss, AdamW, weight decay and clipped norm. Ours is the step of a training
worker (`cluster/engine.py`: DeepSpeed, ZeRO 2, bf16 with float32 master weights), the other `public_mae.py` in float32 with
torch's AdamW as it comes. They take turns in one process, so that what else the machine does hits both; the ratio of medians
is what to look at. THP_MEM_ALLOC_ENABLE=1 gives both the huge pages that a worker has (`cluster/__init__.py`). The last column
says what products of matrices alone gain from bf16 here, forward and backward in the shapes of the encoder's blocks: without
AMX about two, which bounds the rest. `--parity SEEDS` trains both for 200 steps instead, from the weights and on the tiles of each
seed; beside them ours in float32, which says how far two runs of one function come apart by rounding alone.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.optimiser import OptimiserConfig, parameter_groups
from cluster.zero import ZeroEngine
from models.batch import Batch, Tiles
from models.compilation import compile_blocks
from models.encoder import EncoderConfig
from models.objectives.mae import Mae, MaeConfig
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig
from models.vit import VitConfig
from tests.bench.public_mae import PublicMae, public_names

BANDS = 12
OPTICAL = SensorSpec(
    "optical", "passive", "surface_reflectance", "1", 10.0, tuple("abcdefghijkl"), (600.0,) * BANDS, (0.2,) * BANDS, (0.1,) * BANDS
)
MASK_RATIO = 0.75
PARITY_STEPS = 200
WARMUP = 3

Step = Callable[[int, Tensor], float]
"""Takes step number `index` on pixels (B, C, Y, X) in reflectance; returns its loss."""


@dataclass(frozen=True)
class Shape:
    """Width, depth and heads of both transformers; side of tile and patch in pixels."""

    encoder: tuple[int, int, int]
    decoder: tuple[int, int, int]
    side_px: int
    patch_px: int
    batch: int

    @property
    def side(self) -> int:
        return self.side_px // self.patch_px

    def __str__(self) -> str:
        encoder, decoder = ("x".join(map(str, part)) for part in (self.encoder, self.decoder))
        return f"{encoder}, decoder {decoder}, {self.side_px} px by {self.patch_px}, batch {self.batch}"


SHAPES = {
    "small224": Shape((384, 12, 6), (192, 4, 3), 224, 16, 16),
    "small192": Shape((384, 12, 6), (256, 4, 8), 192, 16, 16),
    "small64": Shape((384, 12, 6), (256, 4, 8), 64, 8, 64),
    "recipe": Shape((128, 6, 4), (96, 2, 4), 64, 4, 32),
}
"""ViT-S on tiles of three sizes, and the recipe `mae` on Sentinel-2."""


def tiles(shape: Shape, seed: int) -> Tensor:
    """Return (B, C, Y, X) reflectance: few smooth fields seen by all bands, and a little noise."""
    draw = torch.Generator().manual_seed(seed)
    fields = sum(
        F.interpolate(torch.randn(shape.batch, 4, cells, cells, generator=draw), shape.side_px, mode="bicubic") for cells in (3, 6)
    )
    seen = torch.einsum("cf,bfyx->bcyx", torch.randn(BANDS, 4, generator=torch.Generator().manual_seed(0)), fields)
    return 0.2 + 0.03 * seen + 0.002 * torch.randn(seen.shape, generator=draw)


def build(shape: Shape, seed: int = 0) -> Mae:
    stem = SensorStemConfig(has_norm=False)
    encoder = EncoderConfig(VitConfig(*shape.encoder), 10.0 * shape.patch_px, (OPTICAL,), hidden="absent", stem=stem)
    decoder = VitConfig(*shape.decoder, has_class_token=False)
    return Mae(encoder, MaeConfig(decoder, MASK_RATIO), torch.Generator().manual_seed(seed))


def public_step(ours: Mae, shape: Shape, config: OptimiserConfig, num_steps: int) -> Step:
    """Return a step of the public formulation that begins with the weights of `ours`."""
    model = PublicMae(BANDS, shape.patch_px, shape.side, shape.encoder, shape.decoder)
    names = public_names([name for name, _ in ours.named_parameters()], OPTICAL.name)
    others = dict(model.named_parameters())
    if set(names.values()) != set(others):
        raise SystemExit(f"parameters differ: {sorted(set(names.values()) ^ set(others))}")
    with torch.no_grad():
        for name, value in ours.named_parameters():
            others[names[name]].copy_(value.view_as(others[names[name]]))
    groups = [
        {"params": [others[names[name]] for name, p in ours.named_parameters() if any(p is q for q in group["params"])]}
        | {"weight_decay": group["weight_decay"]}
        for group in parameter_groups(ours, config.weight_decay)
    ]
    optimiser = torch.optim.AdamW(groups, 0.0, config.betas)
    level, spread = (torch.tensor(values).view(-1, 1, 1) for values in (OPTICAL.mean, OPTICAL.std))

    def step(index: int, pixels: Tensor) -> float:
        for group in optimiser.param_groups:
            group["lr"] = config.rate(index, num_steps)
        # Ours hides the smallest numbers, the public code the largest.
        noise = -torch.rand(shape.batch, shape.side**2, generator=torch.Generator().manual_seed(index))
        optimiser.zero_grad()
        loss = model((pixels - level) / spread, noise, MASK_RATIO)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        return loss.item()

    return step


def our_step(ours: Mae, shape: Shape, config: OptimiserConfig, num_steps: int) -> Step:
    """Return a step as a training worker takes it."""
    engine = ZeroEngine(ours, config, num_steps, shape.batch, 1, counts_flops=False)
    is_valid = torch.ones(shape.batch, 1, shape.side_px, shape.side_px, dtype=torch.bool)
    there, days = torch.ones(shape.batch, 1, dtype=torch.bool), torch.zeros(shape.batch, 1, dtype=torch.float64)
    where = torch.zeros(shape.batch, 2, dtype=torch.float64)

    def step(index: int, pixels: Tensor) -> float:
        part = Tiles(pixels[:, None], is_valid, there, days, OPTICAL.bands, OPTICAL.unit, OPTICAL.gsd_m)
        return engine.step(index, [(Batch({OPTICAL.name: part}, where), torch.Generator().manual_seed(index))])["loss"]

    return step


def seconds(call: Callable[..., object], *arguments: object) -> Tensor:
    """Return the seconds that `call` takes, and those of processors."""
    begin, busy = time.perf_counter(), time.process_time()
    call(*arguments)
    return torch.tensor([time.perf_counter() - begin, time.process_time() - busy], dtype=torch.float64)


def product(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> None:
    torch.autograd.grad(F.linear(x, weight, bias), (x, weight), gradient)


def product_seconds(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return the `seconds` of one encoder block's four linear maps, forward and both gradients."""
    rows, width, total = shape.batch * (1 + round(shape.side**2 * (1 - MASK_RATIO))), shape.encoder[0], torch.zeros(2)
    for fan_in, fan_out in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        x, weight, bias = (torch.randn(*size, dtype=dtype) for size in ((rows, fan_in), (fan_out, fan_in), (fan_out,)))
        x.requires_grad_(), weight.requires_grad_()
        total = total + seconds(product, x, weight, bias, torch.randn(rows, fan_out, dtype=dtype))
    return total


def compare(shape: Shape, rounds: int, with_compile: bool) -> None:
    config = OptimiserConfig(learning_rate=1e-3)
    sides = {"public": public_step(build(shape), shape, config, 1000), "ours": our_step(build(shape), shape, config, 1000)}
    if with_compile:
        compiled = build(shape)
        compile_blocks(compiled)
        sides["compiled"] = our_step(compiled, shape, config, 1000)
    times = {name: [] for name in (*sides, torch.float32, torch.bfloat16)}
    batches = [tiles(shape, seed) for seed in range(2)]
    for index in range(WARMUP + rounds):
        for name, step in sides.items():
            times[name].append(seconds(step, index, batches[index % 2]))
        for dtype in (torch.float32, torch.bfloat16):
            times[dtype].append(product_seconds(shape, dtype))
    middle = {name: 1e3 * torch.stack(values[WARMUP:]).median(0).values for name, values in times.items()}
    cells = [shown(middle["public"]), shown(middle["ours"]), ratio(middle["public"], middle["ours"])]
    cells += [shown(middle["compiled"]), ratio(middle["public"], middle["compiled"])] if with_compile else []
    print(f"| {shape} | {' | '.join([*cells, ratio(middle[torch.float32], middle[torch.bfloat16])])} |", flush=True)


def shown(middle_ms: Tensor) -> str:
    return " / ".join(f"{value:.0f}" for value in middle_ms)


def ratio(slow: Tensor, fast: Tensor) -> str:
    return " / ".join(f"{value:.2f}" for value in slow / fast)


def parity(shape: Shape, seeds: int, rate: float) -> None:
    ends: dict[str, list[float]] = {}
    for seed in range(seeds):
        config, exact = (OptimiserConfig(learning_rate=rate, warmup_steps=20, bf16=bf16) for bf16 in (True, False))
        sides = {"public": public_step(build(shape, seed), shape, config, PARITY_STEPS)}
        sides["ours"] = our_step(build(shape, seed), shape, config, PARITY_STEPS)
        sides["ours in float32"] = our_step(build(shape, seed), shape, exact, PARITY_STEPS)
        losses = {name: [] for name in sides}
        for index in range(PARITY_STEPS):
            pixels = tiles(shape, PARITY_STEPS * seed + index)
            for name, step in sides.items():
                losses[name].append(step(index, pixels))
        for name, values in losses.items():
            at = ", ".join(f"{mean(values[max(0, i - 9) : i + 1]):.4f}" for i in (0, 24, 49, 99, 149, PARITY_STEPS - 1))
            print(f"{shape}, seed {seed}: {name} after 1, 25, 50, 100, 150, {PARITY_STEPS} steps (mean of ten) {at}", flush=True)
            ends.setdefault(name, []).append(mean(values[-20:]))
    for name in ("ours", "ours in float32"):
        apart = torch.tensor(ends[name]) - torch.tensor(ends["public"])
        spread = f"{apart.std() / seeds**0.5:.5f}" if seeds > 1 else "unknown"
        print(
            f"last 20 steps, {name} - public: mean {apart.mean():+.5f}, its standard error {spread}, largest {apart.abs().max():.5f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="some of " + ", ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="otherwise each shape has its own")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parity", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--rate", type=float, default=1e-3, help="of --parity")
    parser.add_argument("--compile", action="store_true", help="also our step with compiled blocks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["LOCAL_RANK"] = "0"
    chosen = [SHAPES[name] for name in options.shapes.split(",")]
    if options.batch_size:
        chosen = [replace(shape, batch=options.batch_size) for shape in chosen]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        if not options.parity:
            print("Milliseconds, and those of processors; medians.\n")
            titles = ["shape", "public float32", "ours", "ratio", *(["compiled", "ratio"] * options.compile)]
            print(f"| {' | '.join([*titles, 'products alone'])} |\n|{'---|' * (len(titles) + 1)}")
        for shape in chosen:
            parity(shape, options.parity, options.rate) if options.parity else compare(shape, options.rounds, options.compile)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
