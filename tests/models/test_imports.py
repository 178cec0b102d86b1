"""A trained encoder runs where nothing but torch, safetensors and numpy is installed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from models.encoder import Encoder, EncoderConfig

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import importlib.abc, sys
BLOCKED = {"ray", "deepspeed", "zarr", "xarray", "pydantic", "rasterio", "yaml", "scipy", "pipeline", "cluster", "jobs"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import torch
import models, models.health, models.objectives.msgfm, models.objectives.distillation
encoder = models.Encoder.load(sys.argv[1])
tiles = models.Tiles(torch.full((1, 1, 1, 16, 16), -12.0), torch.ones(1, 1, 16, 16).bool(), torch.ones(1, 1).bool(),
                     torch.zeros(1, 1), ("VV",), "dB", 10.0)
print(tuple(encoder.encode(models.Batch({"radar": tiles}, torch.zeros(1, 2)))["radar"].pooled.shape))
"""


def test_runs_with_torch_alone(make_config: Callable[..., EncoderConfig], tmp_path: Path) -> None:
    Encoder(make_config()).save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 1, 16)"
