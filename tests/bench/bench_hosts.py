"""What Ray Train and DeepSpeed cost beside a bare loop: `python -m tests.bench.bench_hosts ARCHIVE --work DIR`.

The same recipe on the same samples, in turns: in one process of plain torch, and as one worker of Ray Train under DeepSpeed
with each ZeRO stage asked for. Seconds of a step and processor seconds of the training process are those that metrics.jsonl tells,
the first steps left out; data wait is the share of a step spent waiting for its samples. Ray's own processes (a dozen and more) share the processors with the worker:
on few cores that is part of the ratio.

`--engines` instead takes a MAE's steps in turns in one process, without Ray: what DeepSpeed alone costs, which a busy machine hides
less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median

import torch
import torch.distributed as dist

from cluster.bare import BareEngine
from cluster.engine import Engine
from cluster.optimiser import OptimiserConfig
from cluster.zero import ZeroEngine
from models.batch import Batch, Tiles
from tests.bench.bench_mae_step import OPTICAL, SHAPES, Shape, build, tiles

LEFT_OUT = 20
MICRO_BATCHES = 2


def steps(folder: Path) -> tuple[list[float], list[float], list[float], float]:
    """Return relative seconds and processor seconds of each step, its data wait, and the last loss."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][LEFT_OUT:]
    return (
        [1 / r["samples_per_second"] for r in records],
        [r["processors_busy"] / r["samples_per_second"] for r in records],
        [r["data_wait_share"] for r in records],
        mean(r["loss"] for r in records[-10:]),
    )


def compare_engines(shape: Shape, stages: list[int], num_steps: int) -> None:
    """Print a row for each engine: seconds and processor seconds of a step of two micro-batches, beside the bare engine's."""
    engines: dict[str, Engine] = {
        "plain torch": BareEngine(build(shape), OptimiserConfig(), num_steps, MICRO_BATCHES, "cpu", False)
    }
    for stage in stages:
        config = OptimiserConfig(zero_stage=stage)
        engines[f"ZeRO {stage}"] = ZeroEngine(build(shape), config, num_steps, shape.batch, MICRO_BATCHES, False)
    there, days = torch.ones(shape.batch, 1, dtype=torch.bool), torch.zeros(shape.batch, 1, dtype=torch.float64)
    is_valid = torch.ones(shape.batch, 1, shape.side_px, shape.side_px, dtype=torch.bool)
    part = Tiles(tiles(shape, 0)[:, None], is_valid, there, days, OPTICAL.bands, OPTICAL.unit, OPTICAL.gsd_m)
    batch = Batch({OPTICAL.name: part}, torch.zeros(shape.batch, 2, dtype=torch.float64))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for step in range(num_steps):
        for name, engine in engines.items():
            begin, busy = time.perf_counter(), time.process_time()
            engine.step(step, [(batch, torch.Generator().manual_seed(step))] * MICRO_BATCHES)
            found[name].append((time.perf_counter() - begin, time.process_time() - busy))
    middle = {name: [median(column) for column in zip(*taken[num_steps // 5 :])] for name, taken in found.items()}
    base = middle["plain torch"]
    for name, (seconds, busy) in middle.items():
        print(f"| {shape} | {name} | {seconds * 1e3:.0f} ms | {seconds / base[0]:.3f} | {busy / base[1]:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?")
    parser.add_argument("--engines", nargs="*", choices=[*SHAPES], help="shapes to compare engines on, without Ray")
    parser.add_argument("--recipe", default="mae")
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", type=int, nargs="+", default=[2])
    parser.add_argument("--work", type=Path, help="a folder for the runs")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of terraloom pretrain")
    given = parser.parse_args()
    if given.engines:
        os.environ["LOCAL_RANK"] = "0"
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
            print("| model | engine | step | seconds, ratio | processor seconds, ratio |\n|---|---|---|---|---|")
            for name in given.engines:
                compare_engines(SHAPES[name], given.stages, given.steps)
            dist.destroy_process_group()
        return
    hosts = {"bare loop": ["--workers", "0"]}
    hosts |= {f"Ray Train, ZeRO {stage}": ["--workers", "1", "--zero-stage", str(stage)] for stage in given.stages}
    found: dict[str, tuple[list[float], list[float], list[float], list[float]]] = {name: ([], [], [], []) for name in hosts}
    for turn in range(given.rounds):
        for number, (name, options) in enumerate(hosts.items()):
            folder = given.work / f"{turn}_{number}"
            fixed = ["--num-steps", str(given.steps), "--checkpoint-every", str(given.steps), "--health-every", "0"]
            command = ["pretrain", given.recipe, given.archive, str(folder), *fixed, *options, *given.options]
            subprocess.run([sys.executable, "-m", "jobs.cli", *command], check=True, capture_output=True)
            *columns, loss = steps(folder)
            for column, more in zip(found[name], columns):
                column.extend(more)
            found[name][3].append(loss)
    base, base_busy = (median(column) for column in found["bare loop"][:2])
    print("| host | a step, relative (quartile, quartile) | processor seconds, relative | data wait, mean | loss of the last 10 |")
    print("|---|---|---|---|---|")
    for name, (seconds, busy, waits, losses) in found.items():
        ordered = sorted(seconds)
        low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
        print(
            f"| {name} | {median(seconds) / base:.3f} ({low / base:.3f}, {high / base:.3f}) | {median(busy) / base_busy:.3f} | {mean(waits):.1%} "
            f"| {', '.join(f'{loss:.5f}' for loss in losses)} |"
        )


if __name__ == "__main__":
    main()
