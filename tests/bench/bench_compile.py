"""A training step with and without torch.compile, side by side: `python -m tests.bench.bench_compile [--threads 1]`.

Steps of MAE on a ViT and of msGFM on a Swin with experts, forward, backward and AdamW, on made tiles. Both kinds take turns, so
that what else the machine does hits both; the ratio of medians is what to look at.
"""

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from models.batch import Batch, Tiles
from models.compilation import compile_blocks
from models.encoder import EncoderConfig
from models.moe import MoEConfig
from models.objectives.mae import Mae, MaeConfig
from models.objectives.msgfm import Msgfm, MsgfmConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.vit import VitConfig

SENSORS = (
    SensorSpec(
        "optical", "passive", "surface_reflectance", "1", 10.0, tuple("abcdefghijkl"), (600.0,) * 12, (0.2,) * 12, (0.1,) * 12
    ),
    SensorSpec("radar", "active", "sigma0", "dB", 10.0, ("VV", "VH"), (None,) * 2, (-12.0, -18.0), (4.0, 4.0)),
)
SIDE_PX = 64


def objectives() -> dict[str, nn.Module]:
    moe, draw = MoEConfig(8), torch.Generator().manual_seed(0)
    vit = EncoderConfig(VitConfig(128, 6, 4), 40.0, SENSORS, hidden="absent")
    expert_vit = EncoderConfig(VitConfig(128, 6, 4, moe=moe), 40.0, SENSORS, hidden="absent")
    swin = EncoderConfig(SwinConfig(), 40.0, SENSORS, pool="stages")
    expert_swin = EncoderConfig(SwinConfig(moe=moe), 40.0, SENSORS, pool="stages")
    decoder = MaeConfig(VitConfig(96, 2, 4, has_class_token=False))
    return {
        "mae, vit 128 x 6": Mae(vit, decoder, draw),
        "mae, vit 128 x 6, experts": Mae(expert_vit, decoder, draw),
        "msgfm, swin 48": Msgfm(MsgfmConfig(swin), draw),
        "msgfm, swin 48, experts": Msgfm(MsgfmConfig(expert_swin), draw),
    }


def make_batch(size: int, index: int) -> Batch:
    draw, tiles = torch.Generator().manual_seed(index), {}
    for spec in SENSORS:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
        pixels = torch.randn(size, 1, spec.num_bands, SIDE_PX, SIDE_PX, generator=draw) * std + mean
        is_valid = torch.ones(size, 1, SIDE_PX, SIDE_PX, dtype=torch.bool)
        there, days = torch.ones(size, 1, dtype=torch.bool), torch.zeros(size, 1, dtype=torch.float64)
        tiles[spec.name] = Tiles(pixels, is_valid, there, days, spec.bands, spec.unit, spec.gsd_m)
    return Batch(tiles, torch.zeros(size, 2, dtype=torch.float64), index)


def stepper(objective: nn.Module, dtype: torch.dtype, size: int, device: str) -> Callable[[int], tuple[float, float]]:
    """Return a function that takes step `index` and returns its loss and seconds."""
    objective = objective.to(device, dtype)
    optimiser = torch.optim.AdamW(objective.parameters(), 1e-4)

    def step(index: int) -> tuple[float, float]:
        batch, draw = make_batch(size, index).to(device), torch.Generator().manual_seed(index)
        begin = time.perf_counter()
        loss = objective(batch, draw)["loss"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        value = float(loss.detach())
        if device == "cuda":
            torch.cuda.synchronize()
        return value, time.perf_counter() - begin

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="a training worker of two on two cores has one")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--float32", action="store_true", help="bf16 otherwise")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = torch.float32 if options.float32 else torch.bfloat16
    print("| step | eager, ms | compiled, ms | ratio | first steps, s | loss apart |\n|---|---|---|---|---|---|")
    for name, objective in objectives().items():
        twin = copy.deepcopy(objective)
        compile_blocks(twin)
        eager, compiled = (stepper(part, dtype, options.batch_size, options.device) for part in (objective, twin))
        begin = time.perf_counter()
        for index in range(4):
            compiled(index)
        warm = time.perf_counter() - begin
        for index in range(4):
            eager(index)
        pairs = [(eager(index), compiled(index)) for index in range(4, 4 + options.rounds)]
        slow, fast = (1e3 * median(pair[side][1] for pair in pairs) for side in (0, 1))
        apart = max(abs(a[0] - b[0]) / abs(a[0]) for a, b in pairs)
        print(f"| {name} | {slow:.1f} | {fast:.1f} | {slow / fast:.2f} | {warm:.0f} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
