"""What `terraloom estimate` says beside what is: `python -m tests.bench.bench_estimate [--steps 6]`.

Peak memory and seconds of a step of MAE on two CPU ranks (gloo, DeepSpeed, one thread each), for each ZeRO stage, several models
and micro-batches. Memory twice: the tensors that are alive at most in the engine's own steps, counted one by one, as a GPU's
allocator would; and what resident memory rises by from before the model is built, by the kernel's high-water mark. The device is
measured in the same processes, both ranks at a time: products, memory, link.
"""

import argparse
import ctypes
import gc
import json
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from cluster.capacity import BUCKET, GIB, STAGES, Load, memory_gib, states_of
from cluster.devices import Device
from cluster.job import TrainConfig
from cluster.optimiser import OptimiserConfig
from cluster.workload import made_batch, optimiser_bytes
from cluster.zero import ZeroEngine
from models.cost import CostCounter, measure
from models.encoder import EncoderConfig
from models.objectives.mae import Mae, MaeConfig
from models.vit import VitConfig
from pipeline.views import Single
from tests.bench.bench_compile import SENSORS

RANKS = 2
SIZES = {"256 x 8": VitConfig(256, 8, 4), "384 x 12": VitConfig(384, 12, 6), "512 x 12": VitConfig(512, 12, 8)}
DECODER = VitConfig(256, 4, 8, has_class_token=False)
TRAIN = TrainConfig(view=Single())
SIDE_M = 640.0


def build(size: str) -> Mae:
    encoder = EncoderConfig(SIZES[size], 40.0, SENSORS[:1], hidden="absent")
    return Mae(encoder, MaeConfig(DECODER), torch.Generator().manual_seed(0))


def seconds(work: Callable[[], object], repeats: int = 9) -> float:
    """Return the median seconds of `work`, every rank at it."""
    taken = []
    for _ in range(repeats):
        dist.barrier()
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return median(taken[1:])


def products(rows: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Return the operands of a block's products, forward and back."""
    found = []
    for wide, out in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        x, gradient, weight = (torch.randn(shape).bfloat16() for shape in ((rows, wide), (rows, out), (out, wide)))
        found += [(x, weight.T), (gradient, weight), (gradient.T, x)]
    return found


def between(x: Tensor, wide: Tensor) -> None:
    """Do, forward and back, what a block does between its products."""
    width = x.shape[-1:]
    residual = x + functional.layer_norm(x, width)
    (functional.layer_norm(residual, width).sum() + functional.gelu(wide).sum()).backward()


def measured_device(size: str) -> Device:
    """Return what this rank has while the others are as busy: a block's products, what is between them, reductions in float32."""
    rows, width = 1600, SIZES[size].embed_dim
    operands = products(rows, width)
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in operands)
    x, wide = (torch.randn(rows, n * width).bfloat16().requires_grad_() for n in (1, 4))
    with CostCounter() as counter:
        between(x, wide)
    moved = counter.moved / seconds(lambda: between(x, wide))
    gradients = torch.randn(2**24)
    sent = 2 * (RANKS - 1) / RANKS * 4 * 2**24 / seconds(lambda: dist.all_reduce(gradients))
    done = flops / seconds(lambda: [a @ b for a, b in operands])
    return Device(done / 1e12, 10.0, moved / 1e9, sent / 1e9, moved / 1e9, 1.0, 1.0, is_gpu=False)


def resident(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def steps_of(size: str, stage: int, samples: int, steps: int) -> Iterator[float]:
    """Yield the seconds of each step of a new model."""
    engine = ZeroEngine(build(size), OptimiserConfig(zero_stage=stage), steps, samples, 1, counts_flops=False)
    for step in range(steps):
        batch = made_batch(SENSORS[:1], SIDE_M, TRAIN, samples, step)
        dist.barrier()
        begin = time.perf_counter()
        engine.step(step, [(batch, torch.Generator().manual_seed(step))])
        yield time.perf_counter() - begin


class Alive(CostCounter):
    """Counts tensors that are alive, DeepSpeed's too; of the buffer for gradients, asked for whole, what was ever written to."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_dispatch__(function, types, args, kwargs)
        if function._overloadpacket is torch.ops.aten.copy_ and is_buffer(args[0]):
            self._fill(args[0])
        return output

    def watch(self, x: Tensor) -> None:
        if not is_buffer(x):
            super().watch(x)

    def _fill(self, part: Tensor) -> None:
        storage = part.untyped_storage()
        key, end = storage._cdata, (part.storage_offset() + part.numel()) * part.element_size()
        if key not in self._written:
            weakref.finalize(storage, self._forget, key)
        self.live += max(0, end - self._written.get(key, 0))
        self._written[key] = max(end, self._written.get(key, 0))
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._written.pop(key)


def is_buffer(x: Tensor) -> bool:
    return x.untyped_storage().nbytes() >= 2 * BUCKET


def alive(size: str, stage: int, samples: int) -> int:
    """Return the most bytes of tensors at once in two steps."""
    with Alive() as counter:
        for _ in steps_of(size, stage, samples, 2):
            pass
    return counter.peak


def run(size: str, stage: int, samples: int, steps: int) -> tuple[float, float, float]:
    """Return the bytes that are alive at most, those by which resident memory rises, and the seconds of a step."""
    counted = alive(size, stage, samples)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = resident("VmRSS")
    taken = list(steps_of(size, stage, samples, steps))
    return counted, resident("VmHWM") - before, median(taken[2:])


def rank_main(rank: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    run("256 x 8", 0, 4, 3)  # libraries are loaded, caches filled
    found = []
    for size in options.sizes:
        device = measured_device(size)
        for stage in options.stages:
            for samples in options.samples:
                found.append((size, stage, samples, vars(device), *run(size, stage, samples, options.steps)))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def estimated(size: str, stage: int, samples: int, device: Device) -> tuple[float, dict[str, float]]:
    """Return the bytes and the seconds that the formulas give."""
    optimiser, model = OptimiserConfig(zero_stage=stage), build(size).bfloat16()
    states = states_of(model, optimiser)
    cost = measure(model, lambda number: made_batch(SENSORS[:1], SIDE_M, TRAIN, number), is_fused=False, micro_batch=samples)
    moved = samples * cost.bytes + states.moved(stage, RANKS, 1, optimiser_bytes(optimiser))
    load = Load(samples * cost.done_flops, moved, states.sent(stage, RANKS, 1), 0.0)
    return memory_gib(states, stage, RANKS, device, cost, samples) * GIB, load.seconds(device, device.link_gb_per_second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--stages", nargs="+", type=int, default=list(STAGES))
    parser.add_argument("--samples", nargs="+", type=int, default=[8, 32])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (folder, options), RANKS)
        both = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(RANKS)]
    print(
        "| ViT | stage | samples | MiB of tensors | MiB resident | estimate | to tensors | s | estimate | | products, memory, link |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for one, other in zip(*both, strict=True):
        size, stage, samples, device = one[:4]
        counted, rise, taken = (max(one[place], other[place]) for place in (4, 5, 6))
        memory, parts = estimated(size, stage, samples, Device(**device))
        said = sum(parts.values())
        shares = ", ".join(f"{parts[name]:.2f}" for name in ("products", "memory bandwidth", "interconnect"))
        print(
            f"| {size} | {stage} | {samples} | {counted / 2**20:.0f} | {rise / 2**20:.0f} | {memory / 2**20:.0f} "
            f"| {memory / counted - 1:+.0%} | {taken:.2f} | {said:.2f} | {said / taken - 1:+.0%} | {shares} |",
            flush=True,
        )
    for size in options.sizes:
        device = next(one[3] for one in both[0] if one[0] == size)
        print(size, {name: f"{device[name]:.3g}" for name in ("bf16_tflops", "memory_gb_per_second", "link_gb_per_second")})


if __name__ == "__main__":
    main()
