"""Whether a run fits the memory of the cluster's GPUs, said in one line before anything starts.

States first, which the shapes alone tell; then what the run's own micro-batches take beside them, counted as `terraloom
estimate` counts. What cannot be counted is not judged: cards that are not known, compiled blocks, features that are read,
models that this machine has no room for.
"""

from dataclasses import replace

import psutil
import ray
import torch
from torch import nn

from cluster.capacity import STAGES, States, largest_micro_batch, memory_gib, states_of
from cluster.devices import DEVICES, Device, device_called
from cluster.job import Job, TrainConfig
from cluster.start import sensors_of
from cluster.workload import costs, shape_of_archive
from models.cost import UndrawnWeights
from pipeline.archive import open_archive
from pipeline.errors import InputError

DOUBT = 1.1
"""How far the estimate of a whole step may lie above what there is before a run is refused."""
COUNTED_BYTES = 6
"""Of each parameter in this process while a step is counted: drawn in float32, then bf16 with gradients."""


def require_memory(job: Job, shapes: nn.Module) -> None:
    """Raise an InputError where `job` cannot fit its GPUs. `shapes` is its objective, on the meta device."""
    card = _smallest_card() if job.config.gpus_per_worker else None
    if card is None:
        return
    card = replace(card, memory_gib=card.memory_gib * min(1.0, job.config.gpus_per_worker))
    states = states_of(shapes, job.config.optimiser)
    _require_room_for_states(states, job.config, card)
    parameters = sum(p.numel() for p in shapes.parameters())
    if not (job.config.features or job.config.compile) and COUNTED_BYTES * parameters < psutil.virtual_memory().available:
        _require_room_for_steps(states, job, card)


def _smallest_card() -> Device | None:
    """Return the card of the cluster that has least memory; None without any, or where one is not known."""
    found = {device_called(name.partition(":")[2]) for name in ray.cluster_resources() if name.startswith("accelerator_type:")}
    cards = [DEVICES[name] for name in found if name]
    return min(cards, key=lambda card: card.memory_gib) if cards and None not in found else None


def _require_room_for_states(states: States, config: TrainConfig, card: Device) -> None:
    stage, workers = config.optimiser.zero_stage, config.fewest
    found = {stage: memory_gib(states, stage, workers, card) for stage in STAGES}
    if found[stage] > card.memory_gib:
        fitting = " or ".join(str(stage) for stage in STAGES if found[stage] <= card.memory_gib)
        do = f"--zero-stage {fitting}" if fitting else "more workers (--workers) with --zero-stage 3, --offload, or a smaller model"
        raise InputError(
            f"ZeRO stage {stage} needs {found[stage]:.0f} GiB on each of {workers} GPUs before the first sample, they have "
            f"{card.memory_gib:.3g} GiB; use {do}"
        )


def _require_room_for_steps(states: States, job: Job, card: Device) -> None:
    config = job.config
    stage, workers = config.optimiser.zero_stage, config.fewest
    try:
        shape = shape_of_archive(job.archive_url, config)
    except InputError:  # none of the few shards that it looks at has a sample; others have
        return
    with UndrawnWeights():
        objective = job.build(sensors_of(job, open_archive(job.archive_url)), torch.Generator().manual_seed(0))
    of_sets = costs(objective, shape, config, is_fused=True)
    found = [cost for of_set in of_sets.values() for cost in of_set]
    parts = config.lanes // workers
    need = max(memory_gib(states, stage, workers, card, cost, config.batch_size, parts) for cost in found)
    if need > DOUBT * card.memory_gib:
        fitting = min(largest_micro_batch(states, stage, workers, card, cost, parts) for cost in found)
        ways = [f"--batch-size {fitting} (with more --lanes for the same step)"] if fitting else []
        ways += [] if config.recompute else ["--recompute True"]
        ways += ["a higher --zero-stage"] if stage < 3 else []
        raise InputError(
            f"micro-batches of {config.batch_size} samples need about {need:.0f} GiB on each of {workers} GPUs, they have "
            f"{card.memory_gib:.3g} GiB; use {' or '.join(ways or ['a smaller model'])}"
        )
