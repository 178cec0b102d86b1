"""When a run is ended, on encoders whose health is known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.watch import MIN_HEAD_SHARE, MIN_RANK, MIN_STD, NUM_LOOKS, Watch, is_collapsed
from models.batch import Batch, Tiles
from pipeline.errors import RunFailed

BATCH = Batch(
    {
        name: Tiles(torch.zeros(16, 1, 1, 4, 4), torch.ones(16, 1, 4, 4).bool(), torch.ones(16, 1).bool(), torch.zeros(16, 1), ("b",), "1", 10.0)
        for name in ("optical", "radar")
    },
    torch.zeros(16, 2),
)  # fmt: skip


class Encoder(torch.nn.Module):
    """Says of each sensor's tiles what it is told to say."""

    config = SimpleNamespace(sensors=[SimpleNamespace(name=name) for name in BATCH.tiles])

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, torch.Tensor] = {}

    @property
    def encoder(self) -> "Encoder":
        return self

    def pooled(self, tiles: Tiles, sensor: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.features[sensor][: len(tiles.pixels)], torch.zeros(())


HEALTHY = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
POINT = torch.ones(16, 8) + 1e-4 * HEALTHY
LINE = HEALTHY[:, :1] * torch.ones(8) + 1e-3 * HEALTHY


def looks(*states: tuple[torch.Tensor, torch.Tensor], warmup_steps: int = 0, every: int = 1) -> dict[str, Any]:
    objective = Encoder()
    engine: Any = SimpleNamespace(objective=objective, device="cpu")
    watch, found = Watch(engine, every, len(states), warmup_steps), {}
    for step, (optical, radar) in enumerate(states):
        objective.features = {"optical": optical, "radar": radar}
        found = watch.look(step, BATCH, torch.Generator()) if watch.is_due(step) else {}
        watch.diagnose(step, found)
    return found


@pytest.mark.parametrize("collapsed", [POINT, LINE])
def test_all_sensors_collapsed_often_enough_end_the_run(collapsed: torch.Tensor) -> None:
    with pytest.raises(
        RunFailed, match=r"step 4: the run has collapsed.*optical embedding std .*, rank .*; radar embedding.*3 looks in a row"
    ):
        looks((HEALTHY, HEALTHY), *[(collapsed, collapsed)] * 9)


def test_one_healthy_look_or_sensor_goes_on() -> None:
    assert NUM_LOOKS == 3
    bad, good = (POINT, POINT), (HEALTHY, HEALTHY)
    looks(bad, bad, good, bad, bad, good)
    found = looks(*[(HEALTHY, POINT)] * 9)
    assert is_collapsed(found, "radar")
    assert not is_collapsed(found, "optical")
    looks(*[bad] * 5, warmup_steps=3)
    with pytest.raises(RunFailed, match="step 6"):
        looks(*[bad] * 9, warmup_steps=3)


def test_steps_between_looks_are_not_looked_at() -> None:
    assert looks(*[(POINT, POINT)] * 5, every=0) == {}
    looks(*[(POINT, POINT)] * 4, every=2)
    with pytest.raises(RunFailed, match="step 5"):
        looks(*[(POINT, POINT)] * 5, every=2)  # 2, 4 and, as the last one, 5


@pytest.mark.parametrize(
    ("std", "rank", "projection_std", "num_tiles", "expected"),
    [
        (MIN_STD, MIN_RANK, MIN_HEAD_SHARE * MIN_STD, 32, False),
        (MIN_STD / 2, 10, 1, 32, True),
        (1, MIN_RANK - 0.01, 1, 32, True),
        (1, 10, MIN_HEAD_SHARE / 2, 32, True),
        (0, 0, 0, 4, False),  # four tiles prove nothing
    ],
)
def test_thresholds(std: float, rank: float, projection_std: float, num_tiles: int, expected: bool) -> None:
    names = ("feature_std/dsm", "effective_rank/dsm", "projection_std/dsm", "num_tiles/dsm")
    assert is_collapsed(dict(zip(names, (std, rank, projection_std, num_tiles))), "dsm") is expected
