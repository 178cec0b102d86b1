"""A trained encoder loads and runs where only the core install is: no Ray, no DeepSpeed, no rasters."""

import subprocess
import sys
import venv
from pathlib import Path

import torch

from models.encoder import Encoder, EncoderConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, importlib.util, torch
from models import Batch, Encoder, Tiles
absent = [n for n in ("ray", "deepspeed", "zarr", "rasterio", "pydantic", "xarray") if importlib.util.find_spec(n)]
assert not absent, absent
encoder = Encoder.load(sys.argv[1])
tiles = Tiles(torch.full((2, 1, 2, 32, 32), -12.0), torch.ones(2, 1, 32, 32, dtype=torch.bool),
              torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.float64), ("VV", "VH"), "dB", 10.0)
batch = Batch({"sentinel1_grd": tiles}, torch.zeros(2, 2, dtype=torch.float64))
print("pooled", tuple(encoder.encode(batch)["sentinel1_grd"].pooled.shape))
"""


def test_encoder_runs_with_the_core_install(tmp_path: Path) -> None:
    sensor = SensorSpec("sentinel1_grd", "active", "sigma0", "dB", 10.0, ("VV", "VH"), (None, None), (-12.0, -18.0), (3.0, 3.0))
    swin = SwinConfig(embed_dim=16, depths=(1, 1), num_heads=(1, 2))
    Encoder(EncoderConfig(swin, 40.0, (sensor,)), torch.Generator().manual_seed(0)).save(tmp_path / "model")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", ROOT]
    subprocess.run(install, check=True, timeout=500)
    done = subprocess.run([python, "-c", SCRIPT, tmp_path / "model"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "pooled (2, 1, 32)"
    assert sys.executable != str(python)
