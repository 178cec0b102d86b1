"""Steps that are not taken: worked numbers, and nothing moves under any ZeRO stage or in plain torch, on all ranks alike."""

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cluster.bare import BareEngine
from cluster.engine import Engine
from cluster.optimiser import OptimiserConfig
from cluster.spikes import MAX_IN_A_ROW, WINDOW, Spikes
from cluster.zero import ZeroEngine
from models.batch import Batch
from pipeline.errors import RunFailed

STEPS = WINDOW // 2 + 8
SPIKE, NOT_FINITE = STEPS - 4, STEPS - 2
"""Steps whose batch is a thousand times too large, and holds a NaN."""
AVERAGED = 0.5


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.encoder = nn.Linear(2, 33)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 3)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": self.encoder(batch.lonlat.to(self.encoder.weight.dtype)).float().pow(2).mean()}


def a_batch(step: int, rank: int) -> Batch:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(2 * step + rank), dtype=torch.float64)
    # One rank alone has the bad batch: all leave the step out.
    return Batch({}, x * (1000.0 if step == SPIKE and rank == 0 else math.nan if step == NOT_FINITE and rank == 0 else 1.0))


def train(engine: Engine, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {"skipped": {}, "moved": [], "averages": [], "weights": []}
    before = engine.gather_master_weights()
    for step in range(STEPS):
        terms = engine.step(step, [(a_batch(step, rank), torch.Generator())])
        after = engine.gather_master_weights()
        found["moved"].append(any(not torch.equal(before[n], after[n]) for n in before if not n.startswith("average")))
        found["averages"].append(after["average.copy.weight"])
        found["weights"].append(after["encoder.weight"].to(torch.bfloat16 if engine.config.bf16 else torch.float32).float())
        if "skipped" in terms:
            found["skipped"][step] = terms["skipped"]
        before = after
    return found


def configs() -> dict[str, OptimiserConfig]:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 1, "average_momentum": AVERAGED, "skip_above": 6.0}
    made = {f"zero {stage}": OptimiserConfig(zero_stage=stage, **settings) for stage in range(4)}
    made |= {f"zero {stage}, offloaded": OptimiserConfig(zero_stage=stage, offload=True, **settings) for stage in (2, 3)}
    return made | {"float32": OptimiserConfig(zero_stage=0, bf16=False, **settings)}


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {name: train(ZeroEngine(Line(), config, STEPS, 8, 1), rank) for name, config in configs().items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("spikes")
    mp.spawn(_run, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def check(made: dict[str, Any]) -> None:
    assert [*made["skipped"]] == [SPIKE, NOT_FINITE]
    assert "standard deviations above" in made["skipped"][SPIKE]
    assert "expected finite numbers" in made["skipped"][NOT_FINITE]
    assert made["moved"] == [step not in (SPIKE, NOT_FINITE) for step in range(STEPS)]
    average = made["averages"][0]
    for step in range(1, STEPS):
        average = average.lerp(made["weights"][step], 1 - min(AVERAGED, (1 + step) / (10 + step)))
        torch.testing.assert_close(made["averages"][step], average)


@pytest.mark.parametrize("name", configs())
def test_no_rank_takes_a_step_that_is_bad_on_one(name: str, found: list[dict[str, Any]]) -> None:
    assert found[0][name]["skipped"] == found[1][name]["skipped"]
    check(found[0][name])


@pytest.mark.parametrize("bf16", [True, False])
def test_nor_does_plain_torch(bf16: bool) -> None:
    name = "zero 2" if bf16 else "float32"
    check(train(BareEngine(Line(), configs()[name], STEPS), 0))


def history(values: Callable[[int], float], limit: float = 6.0) -> Spikes:
    spikes = Spikes(limit)
    for step in range(WINDOW):
        assert spikes.judge("a", values(step), 1.0) is None
    return spikes


def test_high_is_what_is_many_deviations_above_the_last_of_its_kind() -> None:
    # 1 and 3 in turn: mean 2, standard deviation 1.
    assert history(lambda step: 1.0 + 2 * (step % 2)).judge("a", 7.99, 1.0) is None
    why = history(lambda step: 1.0 + 2 * (step % 2)).judge("a", 8.01, 1.0)
    assert why == "loss 8.01 is 6.0 standard deviations above the 2 of the last 128 steps"
    assert history(lambda step: 1.0 + 2 * (step % 2)).judge("b", 100.0, 1.0) is None
    assert history(lambda step: 1.0, limit=0.0).judge("a", 100.0, 1.0) is None
    # Steps that hardly differ: a hundredth of the mean stands for the deviation.
    assert history(lambda step: 1.0).judge("a", 1.0, 1.05) is None
    assert "gradient norm 1.07 is 7.0" in (history(lambda step: 1.0).judge("a", 1.0, 1.07) or "")


def test_what_is_high_for_long_is_the_new_level() -> None:
    spikes = history(lambda step: 1.0 + 0.1 * (step % 2))
    verdicts = [spikes.judge("a", 2.0, 1.0) for _ in range(20)]
    assert verdicts[0]
    assert not verdicts[-1]


def test_a_run_that_stays_infinite_ends() -> None:
    spikes = Spikes(6.0)
    for _ in range(MAX_IN_A_ROW):
        spikes.require_progress(4)
        assert spikes.judge("a", math.nan, 1.0)
    with pytest.raises(RunFailed, match=r"step 5: loss or gradient is not finite, 5 steps in a row; lower the learning rate"):
        spikes.require_progress(4)
    again = Spikes(6.0)
    again.restore(spikes.state())
    assert again == spikes
