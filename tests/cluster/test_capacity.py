"""Memory of each ZeRO stage and the load of a step, against sums by hand and against DeepSpeed as it was found to be."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from cluster.capacity import BUCKET, GIB, STAGES, Load, States, largest_micro_batch, memory_gib, states_of
from cluster.devices import Device
from cluster.optimiser import OptimiserConfig
from cluster.workload import optimiser_bytes
from models.cost import Cost, Moment
from models.moving import MovingAverage
from tests.bench.bench_estimate import alive, estimated

MILLION = 1_000_000
SIZE, SAMPLES = "256 x 8", (2, 12)
CPU = Device(0.1, 16.0, 20.0, 1.0, 20.0, 1.0, 1.0, is_gpu=False)
COST = Cost(1e9, 1e9, 1e8, 1e5, (Moment(0.0, 1e6, 0), Moment(1e5, 9e5, 2 * MILLION), Moment(1e5, 1e5, 4 * MILLION)))


@pytest.mark.parametrize(
    ("stage", "ranks", "held", "peak"),
    [
        (0, 1, 14, 20), (0, 2, 14, 22), (0, 4, 14, 22),
        (1, 1, 14, 22), (1, 2, 8, 16), (1, 4, 5, 13),
        (2, 1, 14, 22), (2, 2, 8, 16), (2, 4, 5, 13),
        (3, 1, 16, 24), (3, 2, 8, 20), (3, 4, 4, 16),
    ],
)  # fmt: skip
def test_bytes_a_parameter_are_what_deepspeed_was_found_to_hold(stage: int, ranks: int, held: float, peak: float) -> None:
    """Bytes of a MAE in bf16 with AdamW on CPU ranks, of so few samples that states count, in DeepSpeed 0.19.8.

    Counted tensor by tensor by `bench_estimate`'s `alive`, the buffer in which gradients are gathered as far as they fill it.
    """
    states = States(MILLION, 0, OptimiserConfig())
    assert states.held(stage, ranks) == pytest.approx(held * MILLION)
    assert states.peak(stage, ranks, is_gpu=False) == pytest.approx(peak * MILLION, rel=0.02)


def test_a_gpu_is_given_whole_buckets() -> None:
    states = States(MILLION, 0, OptimiserConfig())
    apart = [states.peak(stage, 2, is_gpu=True) - states.peak(stage, 2, is_gpu=False) for stage in STAGES]
    assert apart == [0, 2 * (BUCKET - MILLION), 2 * (BUCKET - MILLION), 4 * (BUCKET - MILLION)]


def test_what_is_not_trained_is_held_too_and_shared_in_stage_3() -> None:
    optimiser = OptimiserConfig()
    with_teacher, without = States(MILLION, 3 * MILLION, optimiser), States(MILLION, 0, optimiser)
    assert [with_teacher.held(z, 4) - without.held(z, 4) for z in STAGES] == [6e6, 6e6, 6e6, 1.5e6]
    assert States(MILLION, 0, OptimiserConfig(algorithm="sgd")).held(0, 1) == 10e6
    assert States(MILLION, 0, OptimiserConfig(bf16=False)).held(0, 1) == 12e6


def test_large_batches_peak_where_activations_meet_gradients() -> None:
    """At 100 samples the second moment is the worst: 1e5 + 100 x 9e5 and 2 bytes of each of 2e6 gradients, or the first's 1e8."""
    states = States(4 * MILLION, 0, OptimiserConfig(zero_stage=0))
    assert states.peak(0, 1, False, COST, 100) == pytest.approx(14 * 4e6 + 1e8)
    assert states.peak(0, 2, False, COST, 30) == pytest.approx(14 * 4e6 + max(30e6, 1e5 + 27e6 + 4e6, 8 * 4e6))
    assert memory_gib(states, 0, 1, CPU, COST, 100) == pytest.approx((14 * 4e6 + 1e8) / GIB)
    for stage in STAGES:
        most = largest_micro_batch(states, stage, 2, CPU, COST)
        assert memory_gib(states, stage, 2, CPU, COST, most) <= CPU.memory_gib < memory_gib(states, stage, 2, CPU, COST, most + 1)


def test_gradients_wait_with_their_weights_where_they_are_not_shared_out() -> None:
    """Two micro-batches of 12 samples on two ranks were counted in DeepSpeed 0.19.8, too: within 2 % at each stage."""
    states, cost = States(4 * MILLION, 0, OptimiserConfig()), Cost(1e9, 1e9, 1e8, 1e5, (Moment(0.0, 1e6, 0),))
    apart = [states.peak(z, 2, False, cost, 100, micro_batches=3) - states.peak(z, 2, False, cost, 100) for z in STAGES]
    assert apart == [8e6, 8e6, 4e6, 0], "those of earlier micro-batches meet all activations, in stage 2 a rank's share"
    large = States(3 * BUCKET, 0, OptimiserConfig())
    assert large.peak(1, 64, is_gpu=True) - large.peak(2, 64, is_gpu=True) == 2 * 2 * BUCKET, "a buffer holds a third of them"


def test_more_gpus_share_states_from_stage_1_on() -> None:
    states = States(10**9, 0, OptimiserConfig())
    needs = {stage: [states.held(stage, ranks) for ranks in (1, 8, 64)] for stage in STAGES}
    assert len(set(needs[0])) == 1
    assert all(needs[stage] == sorted(needs[stage], reverse=True) and len(set(needs[stage])) == 3 for stage in STAGES[1:])
    assert needs[3][2] < needs[2][2] < needs[0][2]


def test_what_a_ring_carries() -> None:
    """Four ranks send three quarters: twice 4 bytes of a gradient, 2 of a weight; stage 3 gradients once, each micro-batch."""
    states = States(MILLION, 0, OptimiserConfig())
    assert [states.sent(stage, 4, 1) for stage in STAGES] == [6e6, 7.5e6, 7.5e6, 4.5e6]
    assert [states.sent(stage, 4, 3) for stage in STAGES] == [6e6, 7.5e6, 19.5e6, 13.5e6]
    assert states.sent(0, 1, 1) == 0


def test_seconds_follow_from_rates() -> None:
    seconds = Load(2e11, 4e10, 3e9, 1e10).seconds(CPU, 1.5)
    assert seconds == pytest.approx({"products": 2.0, "memory bandwidth": 2.0, "interconnect": 2.0, "host link": 0.5})


@pytest.mark.parametrize(("stage", "ranks", "in_all"), [(1, 1, 20), (2, 1, 20), (3, 1, 20), (1, 2, 11), (2, 2, 11), (3, 2, 10)])
def test_what_is_offloaded_is_in_the_machine_instead(stage: int, ranks: int, in_all: float) -> None:
    """Bytes a parameter on both together as counted in DeepSpeed 0.19.8 on CPU ranks, tensor by tensor, between two steps."""
    states = States(MILLION, 0, OptimiserConfig(zero_stage=stage, offload=True))
    assert states.held(stage, ranks) + states.host_bytes(stage, ranks, 1) == pytest.approx(in_all * MILLION)
    assert states.held(stage, ranks) == (2 * MILLION / ranks if stage == 3 else 2 * MILLION)
    kept = States(MILLION, 0, OptimiserConfig(zero_stage=stage))
    assert kept.host_bytes(stage, ranks, 1) == 0
    summed = states.host_bytes(stage, ranks, 2) - states.host_bytes(stage, ranks, 1)
    assert summed == (0 if stage == 3 else 2 * MILLION / ranks)
    assert states.peak(stage, ranks, is_gpu=True) < kept.peak(stage, ranks, is_gpu=True)
    # Gradients go as float32, once for each micro-batch, and weights come back in bf16.
    assert states.copied(ranks, 3) == pytest.approx(14 * MILLION / ranks)
    assert kept.moved(stage, ranks, 1, 32.0) - states.moved(stage, ranks, 1, 32.0) == states.updated(stage, ranks, 32.0)


def test_averages_are_counted_whoever_keeps_them() -> None:
    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(10, 10)
            self.teacher = MovingAverage(self.encoder)

    states = states_of(Taught(), OptimiserConfig(average_momentum=0.999))
    assert (states.parameters, states.buffers, states.averages) == (110, 220, 220)
    assert states_of(Taught(), OptimiserConfig()).averages == 110


def test_an_update_moves_what_its_formula_reads_and_writes() -> None:
    # AdamW in one pass: weight, gradient and two moments are read, and written, as its schema says.
    assert optimiser_bytes(OptimiserConfig()) == pytest.approx(32, rel=0.01)
    # SGD: decay (4 + 8), momentum (4 + 8), update (8 + 12).
    assert optimiser_bytes(OptimiserConfig(algorithm="sgd")) == pytest.approx(44, rel=0.01)


def _count(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    counted = [alive(SIZE, stage, samples) for stage in STAGES for samples in SAMPLES]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(counted))
    dist.barrier()
    dist.destroy_process_group()


def test_what_is_estimated_is_what_is_alive(tmp_path: Path) -> None:
    """Of a MAE's steps on two ranks, at each stage: tensors counted one by one in DeepSpeed's own, products left out."""
    mp.spawn(_count, (str(tmp_path),), 2)
    counted = map(max, *(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)))
    said = [estimated(SIZE, stage, samples, CPU)[0] for stage in STAGES for samples in SAMPLES]
    assert said == pytest.approx(list(counted), rel=0.03)
