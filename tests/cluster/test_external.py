"""Encoders of others, from files made here: what they expect is checked as for our own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cluster.external import ExternalFeatures
from models.batch import Batch, Tiles
from models.errors import InputError as ModelInputError
from pipeline.errors import InputError

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 4, stride=4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layer(pixels)


def made() -> Net:
    torch.manual_seed(2)
    return Net()


def describe(folder: Path, **changes: object) -> str:
    sensor = {"name": "rgb_aerial", "bands": ["blue", "green", "red"], "unit": "1", "gsd_m": 0.5, "mean": MEAN, "std": STD}
    sensor |= {name: changes.pop(name) for name in list(changes) if name in sensor}
    path = folder / "external.json"
    path.write_text(json.dumps({"title": "theirs", "model": "net.onnx", "size_px": 16, "sensors": [sensor]} | changes))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    batch, tmp_path = torch.export.Dim("batch"), tmp_path_factory.mktemp("external")
    torch.onnx.export(
        made().eval(), (torch.zeros(2, 3, 16, 16),), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    return tmp_path


def tiles(pixels: torch.Tensor, gsd_m: float = 0.5, unit: str = "1") -> Batch:
    shape = (pixels.shape[0], 1)
    everywhere, present = torch.ones(*shape, *pixels.shape[-2:], dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
    found = Tiles(pixels[:, None], everywhere, present, torch.zeros(shape), ("red", "green", "blue"), unit, gsd_m)
    return Batch({"rgb_aerial": found}, torch.zeros(len(pixels), 2))


PIXELS = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (3, 3, 32, 32)).astype(np.float32))


def test_an_onnx_file_sees_its_own_bands_normalised_and_resized(folder: Path) -> None:
    found = ExternalFeatures(describe(folder)).load().encode(tiles(PIXELS))["rgb_aerial"]
    normalised = (PIXELS[:, [2, 1, 0]] - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    small = nn.functional.interpolate(normalised, size=(16, 16), mode="bilinear", antialias=True)
    expected = made()(small).mean((2, 3))
    assert found.pooled[:, 0].numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)
    assert found.is_valid.all()


def test_a_module_of_pythons_gives_the_same_as_its_file(folder: Path) -> None:
    here = f"python:{__name__}:made"
    files = [describe(folder), describe(folder, model=here)]
    assert files[0] == files[1]
    (folder / "other.json").write_text(Path(files[1]).read_text())
    describe(folder)
    by_file, by_module = (ExternalFeatures(str(folder / name)).load() for name in ("external.json", "other.json"))
    assert by_module.num_parameters == 3 * 5 * 16 + 5
    found = [encoder.encode(tiles(PIXELS))["rgb_aerial"].pooled for encoder in (by_file, by_module)]
    assert found[0].numpy() == pytest.approx(found[1].numpy(), abs=1e-4)


def test_wrong_pixels_are_refused(folder: Path) -> None:
    encoder = ExternalFeatures(describe(folder)).load()
    for batch, message in (
        (tiles(PIXELS, unit="dB"), "unit 'dB', expected '1'"),
        (tiles(PIXELS, gsd_m=1.0), "pixels of 1 m, expected 0.5 m"),
        (tiles(PIXELS * 1000), "std from the training mean"),
        (tiles(PIXELS / 100000), "vary less than 0.01 std"),
    ):
        with pytest.raises(ModelInputError, match=message):
            encoder.encode(batch)
    with pytest.raises(InputError, match="'sentinel2_l2a' is not described for 'theirs' \\(has rgb_aerial\\)"):
        encoder.spec("sentinel2_l2a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": ["blue", "green", "nir2"]}, "band 'nir2' is not in sensor 'rgb_aerial'"),
        ({"colour": "red"}, "field 'colour' is unknown"),
        ({"model": "net.pt2"}, "none of FILE.onnx"),
        ({"model": "missing.onnx"}, "no model at"),
        ({"model": "python:no_such_module:f"}, "'no_such_module' cannot be imported"),
    ],
)
def test_wrong_descriptions_are_one_line(changes: dict[str, object], message: str, folder: Path) -> None:
    with pytest.raises((InputError, ModelInputError), match=message):
        ExternalFeatures(describe(folder, **changes)).load()


def test_a_library_that_is_not_there_is_said(folder: Path) -> None:
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="'timm' cannot be imported"):
            ExternalFeatures(describe(folder, model="timm:resnet18")).load()
    else:
        pytest.skip("timm is installed")
