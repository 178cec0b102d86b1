"""terraloom estimate RECIPE --gpus N --gpu h200: what a run needs, how long it takes and what it costs, before it starts.

Nothing is started and no cluster is needed: micro-batches of a few made samples go through the real objective on this
machine's processor. docs/jobs/estimate.md says what each number is made of.
"""

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from cluster.capacity import GIB, STAGES, Load, States, largest_micro_batch, memory_gib, states_of
from cluster.devices import DEVICES, Device
from cluster.job import TrainConfig
from cluster.workload import SetShape, Shape, assumed_shape, costs, optimiser_bytes, shape_of_archive
from models.cost import Cost, UndrawnWeights
from pipeline.errors import InputError

DECODE_GB_PER_SECOND = 0.4
"""Of tiles as stored numbers, that one core reads, decodes and converts (docs/benchmarks.md: 123 KB in 0.26 ms)."""
MICRO_BATCHES = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class EstimateConfig:
    """The cluster and its prices."""

    gpus: int = 8
    gpu: str = "h200"
    """One of b200, h200, h100, a100, a100-40gb, l40s, a10g, l4."""
    archive: str | None = None
    """Its sensors, sites, sizes; without: Sentinel-1 and 2, sites as the recipe wants them, shards of 128 MB."""
    site_size_m: float | None = None
    """Without an archive, another side of a site, metres."""
    gpus_per_machine: int = 8
    network_gb_per_second: float = 50.0
    """Of each GPU to other machines, one direction; 50: a port of 400 Gbit/s."""
    storage_gb_per_second: float = 2.0
    """That one machine reads from the store."""
    cores_per_gpu: int = 12
    """Of the machines with GPUs, for reading and decoding."""
    host_memory_gb_per_second: float = 300.0
    """Of one machine's own memory, read and written, where `--offload` has all its GPUs' optimisers."""
    cores_per_cpu_node: int = 64
    gpu_hour_price: float = 0.0
    cpu_node_hour_price: float = 0.0
    thousand_requests_price: float = 0.0

    def __post_init__(self) -> None:
        if self.gpu not in DEVICES:
            raise InputError(f"gpu '{self.gpu}' is unknown (known: {', '.join(DEVICES)})")
        sizes = (self.gpus, self.gpus_per_machine, self.cores_per_gpu, self.cores_per_cpu_node)
        if min(*sizes, self.network_gb_per_second, self.storage_gb_per_second, self.host_memory_gb_per_second) <= 0:
            raise InputError("gpus, cores, network, storage and memory bandwidth must be above 0")
        if min(self.gpu_hour_price, self.cpu_node_hour_price, self.thousand_requests_price) < 0:
            raise InputError("prices must be 0 or more")

    @property
    def device(self) -> Device:
        return DEVICES[self.gpu]

    @property
    def machines(self) -> int:
        return math.ceil(self.gpus / self.gpus_per_machine)

    @property
    def link_gb_per_second(self) -> float:
        """Return what the slowest link of a ring over all GPUs carries."""
        own = self.device.link_gb_per_second
        return own if self.machines == 1 else min(own, self.network_gb_per_second)


def estimate(recipe: Any, config: EstimateConfig) -> dict[str, Any]:
    """Return what a run of `recipe` takes, by the keys that docs/jobs/estimate.md explains.

    Raise InputError where the recipe's lanes cannot be shared evenly by the GPUs.
    """
    train: TrainConfig = replace(recipe.train, workers=str(config.gpus))
    if hasattr(recipe, "located"):
        recipe = recipe.located()
    shape = shape_of_archive(config.archive, train) if config.archive else assumed_shape(recipe, config.site_size_m)
    with UndrawnWeights():
        objective = recipe.build(shape.specs, torch.Generator().manual_seed(0))
    states = states_of(objective, train.optimiser)
    of_sets = costs(objective, shape, train, is_fused=True)
    sample = _sample(shape.sets, of_sets)
    return (
        _memory(states, [cost for of_set in of_sets.values() for cost in of_set], train, config)
        | {"parameters": states.parameters, "frozen_numbers": states.frozen + states.buffers}
        | _rounded(_time(sample, states, train, config, tokens(shape, train, recipe.token_size_m)))
    )


def _sample(sets: tuple[SetShape, ...], of_sets: dict[tuple[str, ...], list[Cost]]) -> dict[str, float]:
    """Return what a sample costs in the mean over steps."""
    found = {}
    for name in ("flops", "done_flops", "bytes", "batch_bytes"):
        found[name] = sum(part.share * fmean(getattr(cost, name) for cost in of_sets[part.sensors]) for part in sets)
    for name in ("stored_bytes", "raw_bytes"):
        found[name] = sum(part.share * getattr(part, name) for part in sets)
    return found | {"requests": sum(part.share * part.shard_requests / part.shard_samples for part in sets)}


def tokens(shape: Shape, train: TrainConfig, token_size_m: float) -> float:
    """Return the tokens of a sample in the mean over sensor sets, before any is hidden."""
    crops, sides_m = train.stream.crops, train.stream.sizes_m or (shape.site_m,)
    areas_m2 = sum(side**2 for side in crops.sizes_m) if crops else fmean(side**2 for side in sides_m)
    of_tile = areas_m2 / token_size_m**2 * train.view.num_dates
    return sum(part.share * len(part.sensors) * of_tile for part in shape.sets)


def _memory(states: States, costs: list[Cost], train: TrainConfig, config: EstimateConfig) -> dict[str, Any]:
    """Return what each ZeRO stage needs of a GPU, of the sensor set that needs most, and what fits."""
    device, stage, batch = config.device, train.optimiser.zero_stage, train.batch_size
    parts = train.lanes // config.gpus

    def need(stage: int, samples: int) -> float:
        return round(max(memory_gib(states, stage, config.gpus, device, cost, samples, parts) for cost in costs), 2)

    sizes = sorted({*MICRO_BATCHES, batch})
    return {
        "fits": need(stage, batch) <= device.memory_gib,
        "zero_stage": stage,
        "micro_batch": batch,
        "gpu_memory_gib": device.memory_gib,
        "memory_gib_per_gpu": {str(z): need(z, batch) for z in STAGES},
        "memory_gib_by_micro_batch": {str(size): {str(z): need(z, size) for z in STAGES} for size in sizes},
        "largest_micro_batch": {
            str(z): min(largest_micro_batch(states, z, config.gpus, device, cost, parts) for cost in costs) for z in STAGES
        },
    }


def _time(sample: dict[str, float], states: States, train: TrainConfig, config: EstimateConfig, tokens: float) -> dict[str, Any]:
    """Return seconds, rates, needs and prices."""
    batch = train.lanes * train.batch_size
    parts = _step(sample, states, train, config)
    device_seconds = sum(parts.values())
    threads = config.gpus * train.stream.threads if train.stream.decode == "trainer" else math.inf
    ahead = {
        "storage": batch * sample["stored_bytes"] / (config.machines * config.storage_gb_per_second * 1e9),
        "decoding": batch * sample["raw_bytes"] / (threads * DECODE_GB_PER_SECOND * 1e9),
    }
    step = max(device_seconds, *ahead.values())
    waits = {name: seconds for name, seconds in ahead.items() if seconds == step}
    hours, samples = step * train.num_steps / 3600, batch * train.num_steps
    # What is needed is what keeps the GPUs busy, not what slower storage or decoding leaves of it.
    needed = {name: value * batch / device_seconds for name, value in sample.items()}
    cores = needed["raw_bytes"] / (DECODE_GB_PER_SECOND * 1e9)
    cpu_nodes = math.ceil(max(0.0, cores - config.gpus * config.cores_per_gpu) / config.cores_per_cpu_node)
    host_bytes = states.host_bytes(train.optimiser.zero_stage, config.gpus, train.lanes // config.gpus)
    prices = {
        "gpus": hours * config.gpus * config.gpu_hour_price,
        "cpu_nodes": hours * cpu_nodes * config.cpu_node_hour_price,
        "requests": sample["requests"] * samples / 1000 * config.thousand_requests_price,
    }
    return {
        "gflops_per_sample": sample["flops"] / 1e9,
        "step_seconds": step,
        "seconds_of": parts | ahead,
        "bottleneck": max(waits or parts, key=lambda name: (waits or parts)[name]),
        "samples_per_second": batch / step,
        "tokens_per_second": tokens * batch / step,
        "mfu": sample["flops"] * batch / step / config.gpus / (config.device.bf16_tflops * 1e12),
        "hours": hours,
        "gpu_hours": hours * config.gpus,
        "storage_gb_per_second_needed": needed["stored_bytes"] / 1e9,
        "requests_per_second_needed": needed["requests"],
        "decoding_cores_needed": cores,
        "decoding_threads_per_worker_needed": math.ceil(cores / config.gpus),
        "cpu_nodes_needed": cpu_nodes,
        "host_memory_gib_per_machine": host_bytes / GIB * min(config.gpus, config.gpus_per_machine),
        "cost": prices | {"total": sum(prices.values())},
    }


def _step(sample: dict[str, float], states: States, train: TrainConfig, config: EstimateConfig) -> dict[str, float]:
    """Return the seconds that a step keeps a GPU, by what it waits for."""
    stage, ranks = train.optimiser.zero_stage, config.gpus
    micro_batches = train.lanes // ranks
    samples = micro_batches * train.batch_size
    reductions = micro_batches if stage >= 2 else 1
    update = optimiser_bytes(train.optimiser)
    moved = states.moved(stage, ranks, reductions, update) + samples * sample["bytes"]
    copied = states.copied(ranks, micro_batches) + samples * sample["batch_bytes"]
    load = Load(samples * sample["done_flops"], moved, states.sent(stage, ranks, micro_batches), copied)
    parts = load.seconds(config.device, config.link_gb_per_second)
    if train.optimiser.offload:
        share = config.host_memory_gb_per_second * 1e9 / min(ranks, config.gpus_per_machine)
        parts["host memory"] = states.updated(stage, ranks, update) / share
    return parts


def _rounded(value: Any) -> Any:
    """Return numbers with four digits that count."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
