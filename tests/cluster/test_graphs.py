"""Files of other runtimes give what the encoder gives, on tiles of a real archive's making."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from cluster.graphs import RealTiles, described, write_graphs
from models.encoder import Encoder, EncoderConfig
from models.graph import SensorGraph
from models.moe import MoEConfig
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.stems.resnet import ResnetStemConfig
from models.swin import SwinConfig
from models.vit import VitConfig
from pipeline.errors import InputError

RADAR = SensorSpec("radar", "active", "sigma0", "dB", 10.0, ("VV", "VH"), (None, None), (-12.0, -18.0), (4.0, 4.0))
SWIN = SwinConfig(embed_dim=16, depths=(1, 2), num_heads=(1, 2), window=2, moe=MoEConfig(4), moe_stages=(1,))


def encoder(name: str) -> Encoder:
    configs = {
        "swin": EncoderConfig(SWIN, 20.0, (RADAR,), pool="stages"),
        "vit": EncoderConfig(VitConfig(embed_dim=16, depth=2, num_heads=2), 20.0, (RADAR,), hidden="absent"),
        "resnet": EncoderConfig(ResnetConfig(18, embed_dim=4), 20.0, (RADAR,), stem=ResnetStemConfig()),
    }
    made = Encoder(configs[name], torch.Generator().manual_seed(0)).eval()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return made


def tiles(graph: SensorGraph, num: int = 21) -> RealTiles:
    pixels, is_valid, *_ = graph.example(num, torch.Generator().manual_seed(3))
    is_valid[2] = False
    return RealTiles(pixels, is_valid, torch.zeros(num).double(), torch.zeros(num, 2).double())


@pytest.mark.parametrize("name", ["swin", "vit", "resnet"])
def test_onnx_gives_what_the_encoder_gives(name: str, tmp_path: Path) -> None:
    made = encoder(name)
    graph = SensorGraph(made, "radar", 16)
    real = tiles(graph)
    formats = ("onnx",) if name == "resnet" else ("torch", "onnx", "int8")
    lines = write_graphs(made, {"radar": real}, tmp_path, formats)
    assert [line["format"] for line in lines] == [*formats]
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "radar.onnx"))
    facts = described(made, {"radar": real})["radar"]
    json.dumps(facts)
    assert [value.name for value in session.get_inputs()] == [*facts["inputs"]]
    for num in (1, 7):
        found = session.run(None, {"pixels": real.pixels[:num].numpy(), "is_valid": real.is_valid[:num].numpy()})
        with torch.no_grad():
            wanted = graph(real.pixels[:num], real.is_valid[:num])
        for made_part, wanted_part in zip(found, wanted):
            torch.testing.assert_close(torch.from_numpy(made_part), wanted_part, rtol=1e-3, atol=1e-4)
    if "int8" in formats:
        assert (tmp_path / "int8" / "radar.onnx").stat().st_size < (tmp_path / "onnx" / "radar.onnx").stat().st_size
        assert lines[-1]["mean_cosine"] > 0.98


def test_what_int8_would_not_change_is_refused(tmp_path: Path) -> None:
    made = encoder("resnet")
    with pytest.raises(InputError, match="a resnet is convolutions"):
        write_graphs(made, {"radar": tiles(SensorGraph(made, "radar", 16))}, tmp_path, ("int8",))
    assert not list(tmp_path.iterdir())
