"""Every ZeRO stage takes the same steps, and so does a run that goes on with another number of ranks, but for rounding."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from cluster.optimiser import OptimiserConfig
from cluster.zero import ZeroEngine
from jobs.recipes import load_recipe
from models.batch import Batch
from tests.cluster.test_backbones import OPTICAL, RADAR, a_batch

STAGES = (0, 1, 2, 3)
LANES, STEPS = 2, 9
SWITCHED = [(2, 3), (1, 6), (2, STEPS)]
"""Numbers of ranks, each until a step."""
RECIPES = ("mae_tiny", "byol_tiny", "msgfm_tiny")
"""Sensors that take turns; a teacher that follows; experts that every rank has."""
OFFLOADED = (1, 2, 3)
SAVED = 4
"""Step after which a run is saved that goes on, and another goes on from."""


class Small(nn.Module):
    """Two layers, one of them another in every second step; a buffer that moves, and weights that move but are not trained."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.enter, self.other, self.leave = nn.Linear(2, 33), nn.Linear(2, 33), nn.Linear(33, 3)
        self.held = nn.Linear(2, 3).requires_grad_(False)
        self.register_buffer("steps", torch.zeros(()))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 3)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        x = batch.lonlat.to(self.leave.weight.dtype)
        enter = self.enter if batch.index % 2 else self.other
        return {"loss": (self.leave(torch.tanh(enter(x))) - self.held(x)).float().pow(2).mean()}

    def after_step(self, step: int, num_steps: int) -> None:
        self.steps += 1
        self.held.weight.mul_(0.9)


def small_batch(step: int, lane: int) -> Batch:
    draw = torch.Generator().manual_seed(100 * step + lane)
    return Batch({}, torch.randn(8, 2, generator=draw, dtype=torch.float64), step)


def _run(rank: int, world: int, start: int, stop: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting_{start}_{world}", rank=rank, world_size=world)
    for stage in STAGES:
        config = OptimiserConfig(learning_rate=0.05, warmup_steps=2, zero_stage=stage)
        engine = ZeroEngine(Small(), config, STEPS, 8, LANES // world)
        if start:
            assert engine.load(f"{folder}/{stage}_{start}") == start
        losses = []
        for step in range(start, stop):
            lanes = [(small_batch(step, lane), torch.Generator()) for lane in range(rank, LANES, world)]
            losses.append(engine.step(step, lanes)["loss"])
        if stop < STEPS:
            engine.save(f"{folder}/{stage}_{stop}", stop)
        weights = engine.gather_master_weights()
        if rank == 0:
            torch.save((losses, weights), f"{folder}/{stage}_{start}_{stop}.pt")
    if stop == STEPS:
        _run_recipes(rank, world, folder)
    dist.barrier()
    dist.destroy_process_group()


def _run_recipes(rank: int, world: int, folder: str) -> None:
    found: dict[str, Any] = {}
    for name in RECIPES:
        for stage in STAGES:
            objective = load_recipe("pretrain", name).build((OPTICAL, RADAR), torch.Generator().manual_seed(0))
            engine = ZeroEngine(objective, OptimiserConfig(learning_rate=5e-3, warmup_steps=2, zero_stage=stage), 6, 4, 1)
            losses = [engine.step(s, [(a_batch(2 * s + rank, s), torch.Generator().manual_seed(s))])["loss"] for s in range(6)]
            found[f"{name} {stage}"] = (losses, engine.gather_master_weights())
    if rank == 0:
        torch.save(found, f"{folder}/recipes.pt")


def _go_on(rank: int, world: int, folder: str) -> None:
    """Of each stage, with and without offload: a run that is saved on the way, and one that goes on from there.

    A step is of two micro-batches a rank.
    """
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    found: dict[tuple[int, bool], Any] = {}
    for stage, offload in [*((stage, False) for stage in STAGES), *((stage, True) for stage in OFFLOADED)]:
        config, place = OptimiserConfig(learning_rate=0.05, warmup_steps=2, zero_stage=stage, offload=offload), f"{stage}_{offload}"

        def steps(engine: ZeroEngine, start: int, stop: int) -> list[float]:
            lanes = (rank, rank + world)
            return [
                engine.step(s, [(small_batch(s, lane), torch.Generator()) for lane in lanes])["loss"] for s in range(start, stop)
            ]

        first, second = (ZeroEngine(Small(), config, STEPS, 8, 2) for _ in range(2))
        losses = steps(first, 0, SAVED)
        first.save(f"{folder}/{place}", SAVED)
        losses += steps(first, SAVED, STEPS)
        assert second.load(f"{folder}/{place}") == SAVED
        again = steps(second, SAVED, STEPS)
        found[stage, offload] = (losses, first.gather_master_weights(), again, second.gather_master_weights())
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()
    dist.destroy_process_group()


def _wait_for_one_that_hangs(rank: int, world: int, folder: str) -> None:
    os.environ["LOCAL_RANK"] = "0"
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=5))
    engine = ZeroEngine(Small(), OptimiserConfig(learning_rate=0.05, warmup_steps=2), STEPS, 8, 1)
    engine.step(0, [(small_batch(0, rank), torch.Generator())])
    told, began = Path(folder) / "told.txt", time.monotonic()
    if rank == 0:
        try:
            engine.step(1, [(small_batch(1, rank), torch.Generator())])
        except RuntimeError as error:
            told.write_text(str(error))
    while not told.exists() and time.monotonic() - began < 60:
        time.sleep(0.1)


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, bool], Any]:
    folder = tmp_path_factory.mktemp("gone_on")
    mp.spawn(_go_on, (2, str(folder)), 2)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder / "compiled"))
        mp.spawn(_run, (2, 0, STEPS, str(folder)), 2)
    return folder


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, start = tmp_path_factory.mktemp("switched"), 0
    for world, stop in SWITCHED:
        mp.spawn(_run, (world, start, stop, str(folder)), world)
        start = stop
    return folder


def test_ranks_wait_no_longer_than_they_were_given(tmp_path: Path) -> None:
    mp.spawn(_wait_for_one_that_hangs, (2, str(tmp_path)), 2)
    assert "Timed out" in (tmp_path / "told.txt").read_text()


def test_nothing_is_compiled_on_the_way(whole: Path) -> None:
    assert not (whole / "compiled").exists()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_on_as_many_ranks_it_goes_on_bit_by_bit(stage: int, offload: bool, gone_on: dict[tuple[int, bool], Any]) -> None:
    if offload and stage not in OFFLOADED:
        pytest.skip("stage 0 keeps all on the GPU")
    losses, weights, again, others = gone_on[stage, offload]
    assert again == losses[SAVED:]
    assert all(torch.equal(others[name], value) for name, value in weights.items())


@pytest.mark.parametrize("stage", OFFLOADED)
def test_what_is_offloaded_takes_the_same_steps(stage: int, gone_on: dict[tuple[int, bool], Any]) -> None:
    (losses, weights, *_), (others, moved, *_) = gone_on[stage, False], gone_on[stage, True]
    assert others == pytest.approx(losses, rel=1e-3)
    for name, value in weights.items():
        torch.testing.assert_close(moved[name], value, rtol=2e-3, atol=2e-3, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_may_change(stage: int, whole: Path, switched: Path) -> None:
    losses, weights = torch.load(whole / f"{stage}_0_{STEPS}.pt", weights_only=True)
    others, start = [], 0
    for _, stop in SWITCHED:
        more, moved = torch.load(switched / f"{stage}_{start}_{stop}.pt", weights_only=True)
        others, start = others + more, stop
    assert losses[-1] < 0.7 * losses[0]
    assert others == pytest.approx(losses, rel=0.01)
    assert set(moved) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(moved[name], value, rtol=0.02, atol=0.02, msg=name)
    assert float(weights["steps"]) == STEPS


@pytest.mark.parametrize("stage", STAGES[1:])
def test_stages_take_the_same_steps(stage: int, whole: Path) -> None:
    """Losses within 1 %, weights within 2 %: gradients are rounded to bf16 at different places."""
    (first, weights), (losses, others) = (torch.load(whole / f"{number}_0_{STEPS}.pt", weights_only=True) for number in (0, stage))
    assert losses == pytest.approx(first, rel=0.01)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0.02, atol=0.02, msg=name)


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize("recipe", RECIPES)
def test_stages_train_the_same_model(recipe: str, stage: int, whole: Path) -> None:
    """A recipe's losses within 2 %, its weights, those of teachers too, apart by less than a fifth of what they moved."""
    found = torch.load(whole / "recipes.pt", weights_only=True)
    (first, weights), (losses, others) = found[f"{recipe} 0"], found[f"{recipe} {stage}"]
    assert losses == pytest.approx(first, rel=0.02)
    begun = load_recipe("pretrain", recipe).build((OPTICAL, RADAR), torch.Generator().manual_seed(0)).state_dict()
    moved, apart = (
        torch.cat([(one[name] - other[name]).float().flatten() for name in begun if begun[name].is_floating_point()]).norm()
        for one, other in ((weights, begun), (weights, others))
    )
    assert moved > 0
    assert apart < 0.2 * moved
