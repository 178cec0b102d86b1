"""The loss curves of all ZeRO stages beside each other: `python -m tests.bench.bench_stages [--steps 100]`.

A recipe on made tiles that have something to learn (smooth fields that all bands see), the same ones in the same order: on two
ranks at each stage, with and without offload, and on one rank that accumulates both lanes; in bf16, and in float32 where what
is left is the order of sums. Apart: of the losses of a step from those of stage 0, relative, and the same averaged over ten steps.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.optimiser import OptimiserConfig
from cluster.zero import ZeroEngine
from jobs.recipes import load_recipe
from models.batch import Batch, Tiles
from tests.bench.bench_mae_step import OPTICAL, Shape, tiles

LANES, BATCH = 2, 8
SHAPE = Shape((0, 0, 0), (0, 0, 0), 64, 4, BATCH)
STAGES = [(0, False), (1, False), (2, False), (3, False), (1, True), (2, True), (3, True)]
"""And whether optimisers are offloaded."""


def batch_of(step: int, lane: int) -> Batch:
    pixels = tiles(SHAPE, LANES * step + lane)[:, None]
    is_valid = torch.ones(BATCH, 1, SHAPE.side_px, SHAPE.side_px, dtype=torch.bool)
    there, days = torch.ones(BATCH, 1, dtype=torch.bool), torch.zeros(BATCH, 1, dtype=torch.float64)
    part = Tiles(pixels, is_valid, there, days, OPTICAL.bands, OPTICAL.unit, OPTICAL.gsd_m)
    return Batch({OPTICAL.name: part}, torch.zeros(BATCH, 2, dtype=torch.float64), step)


def rank_main(rank: int, world: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{world}", rank=rank, world_size=world)
    found = {}
    for bf16 in (True, False):
        for stage, offload in STAGES if world > 1 else [(0, False)]:
            objective = load_recipe("pretrain", options.recipe).build((OPTICAL,), torch.Generator().manual_seed(0))
            config = OptimiserConfig(learning_rate=1e-3, warmup_steps=10, zero_stage=stage, offload=offload, bf16=bf16)
            engine = ZeroEngine(objective, config, options.steps, BATCH, LANES // world, counts_flops=False)
            losses = []
            for step in range(options.steps):
                lanes = [
                    (batch_of(step, lane), torch.Generator().manual_seed(LANES * step + lane)) for lane in range(rank, LANES, world)
                ]
                losses.append(engine.step(step, lanes)["loss"])
            found[world, stage, offload, bf16] = losses
    if rank == 0:
        torch.save(found, Path(folder, f"{world}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mae_tiny")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    found: dict[tuple[int, int, bool, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in (2, 1):
            mp.spawn(rank_main, (world, folder, options), world)
            found |= torch.load(Path(folder, f"{world}.pt"), weights_only=True)
    print("| ranks | stage | | first loss | last ten | apart at most | of ten steps' mean |\n|---|---|---|---|---|---|---|")
    for (world, stage, offload, bf16), losses in found.items():
        loss, reference = torch.tensor(losses), torch.tensor(found[2, 0, False, bf16])
        apart = ((loss - reference).abs() / reference).max()
        smooth = [x.unfold(0, 10, 1).mean(1) for x in (loss, reference)]
        how = f"{'bf16' if bf16 else 'float32'}{', offload' if offload else ''}"
        print(
            f"| {world} | {stage} | {how} | {loss[0]:.4f} | {loss[-10:].mean():.4f} | {apart:.1e} "
            f"| {((smooth[0] - smooth[1]).abs() / smooth[1]).max():.1e} |"
        )


if __name__ == "__main__":
    main()
