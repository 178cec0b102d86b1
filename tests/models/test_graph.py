"""A graph is its encoder: on batches of any size, with invalid pixels, whatever the backbone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.batch import Batch, Tiles
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.graph import SensorGraph, fixed_routing
from models.moe import MoEConfig
from models.objectives.loom import loom_encoder
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.stems.resnet import ResnetStemConfig
from models.vit import VitConfig

MakeConfig = Callable[..., EncoderConfig]
NAMES = ("swin", "swin with experts", "vit", "vit with experts", "vit told time and place", "resnet")


@pytest.fixture
def encoders(make_config: MakeConfig, specs: dict[str, SensorSpec]) -> dict[str, Encoder]:
    vit = VitConfig(embed_dim=16, depth=2, num_heads=2)
    sensors = tuple(specs.values())
    configs = {
        "swin": make_config(),
        "swin with experts": make_config(num_experts=4, embed_dim=16),
        "vit": EncoderConfig(vit, 20.0, sensors, hidden="absent", pool="class"),
        "vit with experts": EncoderConfig(replace(vit, moe=MoEConfig(4, top_k=2)), 20.0, sensors),
        "vit told time and place": loom_encoder(vit, 20.0, sensors, metadata_drop=0.0),
        "resnet": EncoderConfig(ResnetConfig(18, embed_dim=4), 20.0, (specs["radar"],), stem=ResnetStemConfig()),
    }
    made = {}
    for name, config in configs.items():
        made[name] = Encoder(config, torch.Generator().manual_seed(0)).eval()
        for parameter in made[name].parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return made


def encoded(encoder: Encoder, graph: SensorGraph, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What the sealed face of the encoder makes of a graph's inputs."""
    pixels, is_valid, *metadata = inputs
    spec, num = graph.spec, len(pixels)
    days = metadata[0] if metadata else torch.full((num,), torch.nan, dtype=torch.float64)
    lonlat = metadata[1] if metadata else torch.full((num, 2), torch.nan, dtype=torch.float64)
    present = torch.ones(num, 1, dtype=torch.bool)
    tiles = Tiles(pixels[:, None], is_valid[:, None], present, days[:, None], spec.bands, spec.unit, spec.gsd_m)
    found = encoder.encode(Batch({spec.name: tiles}, lonlat))[spec.name]
    return [found.pooled[:, 0], found.grid[:, 0], found.is_valid[:, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_graph_is_the_encoder(encoders: dict[str, Encoder], name: str) -> None:
    encoder = encoders[name]
    graph = SensorGraph(encoder, "radar", 16)
    assert ("time_days" in graph.inputs) == (name == "vit told time and place")
    program = graph.exported().module()
    for batch in (1, 5):
        inputs = graph.example(batch, torch.Generator().manual_seed(batch))
        inputs[1][-1] = batch == 1  # of several tiles, one that shows nothing
        for made, wanted in zip(program(*inputs), encoded(encoder, graph, inputs)):
            torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


def test_heights_are_taken_about_each_tiles_own_level(encoders: dict[str, Encoder]) -> None:
    graph = SensorGraph(encoders["swin"], "dsm", 32)
    inputs = graph.example(3, torch.Generator().manual_seed(4))
    raised = (inputs[0] + 1000, *inputs[1:])
    for low, high in zip(graph(*inputs), graph(*raised)):
        torch.testing.assert_close(low, high, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_that_see_all_answer_as_those_that_are_sent_tokens(top_k: int) -> None:
    from models.moe import build_experts

    experts = build_experts(MoEConfig(4, top_k), 8, 16).eval()
    for number, parameter in enumerate(experts.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    tokens = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(9))
    sent, _ = experts(tokens)
    with fixed_routing(experts):
        seen, _ = experts(tokens)
    assert not experts.sees_all
    torch.testing.assert_close(sent, seen, rtol=1e-5, atol=1e-5)


def test_a_side_that_is_no_whole_number_of_tokens_is_refused(encoders: dict[str, Encoder]) -> None:
    with pytest.raises(InputError, match="tiles of 15 pixels, expected a multiple of 2"):
        SensorGraph(encoders["swin"], "radar", 15)
