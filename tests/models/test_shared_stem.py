"""One stem for all sensors: which bands it sees, that nothing tells it whose they are, and RS-BYOL's draws."""

from dataclasses import replace

import pytest
import torch

from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.objectives.rs_byol import RsByol, RsByolConfig, draw_bands
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.stems.resnet import ResnetStemConfig
from models.stems.shared import SharedStemConfig
from models.vit import VitConfig
from tests.models.conftest import DSM, OPTICAL, RADAR

S2 = SensorSpec(
    "s2", "passive", "surface_reflectance", "1", 10.0, ("B02", "B03", "B04", "B08", "B01"), (492.4, 559.8, 664.6, 832.8, 442.7),
    (0.1,) * 5, (0.05,) * 5,
)  # fmt: skip
S1 = SensorSpec("s1", "active", "sigma0", "dB", 10.0, ("VV", "VH"), (None, None), (-12.0, -18.0), (4.0, 4.0))


def config(num_channels: int, *sensors: SensorSpec) -> EncoderConfig:
    stem = SharedStemConfig(num_channels=num_channels)
    return EncoderConfig(VitConfig(8, 1, 2), 20.0, sensors or (S1, S2), hidden="absent", stem=stem)


def test_three_channels_are_red_green_and_blue_or_what_there_is() -> None:
    stem = SharedStemConfig(num_channels=3)
    assert stem.groups(S2) == ((2, 1, 0),)
    assert stem.groups(S1) == ((0, 1, 0),)
    assert stem.groups(S2.select(("B08", "B02", "B03"))) == ((0, 1, 2),)
    assert SharedStemConfig(num_channels=1).groups(S2) == ((2,),)
    assert SharedStemConfig(num_channels=1).groups(S1) == ((0,),)


def test_weights_belong_to_no_sensor(make_batch, generator: torch.Generator) -> None:
    """The same numbers mean the same whichever sensor they are of, one that was never seen among them; pixel size matters."""
    encoder = Encoder(config(1), generator)
    assert len([name for name, _ in encoder.stem.named_parameters()]) == 4
    tiles = make_batch(S1).tiles["s1"]
    normalised, _ = encoder.normalise(tiles, S1)
    is_valid = tiles.is_observed.flatten(0, 1)
    radar = encoder.features(normalised[:, :1], is_valid, "s1").maps[-1]
    assert torch.equal(encoder.features(normalised[:, [1, 1, 0, 1, 1]], is_valid, "s2").maps[-1], radar)
    assert encoder.extended(RADAR).encode(make_batch(RADAR))["radar"].pooled.shape == (4, 1, 8)
    with pytest.raises(InputError, match="'dsm' has pixels of 5 m, this shared stem takes 10 m; resample it"):
        encoder.extended(DSM)
    assert len(Encoder(config(1, S1, S2, DSM)).stem.each.projections) == 2


def test_any_stem_can_be_shared(make_batch) -> None:
    stem = SharedStemConfig(num_channels=3, each=ResnetStemConfig())
    encoder = EncoderConfig(ResnetConfig(18, embed_dim=4), 40.0, (S1, S2), stem=stem)
    again = EncoderConfig.from_dict(encoder.to_dict())
    assert again == encoder
    assert Encoder(again).encode(make_batch(S2))["s2"].pooled.shape == (4, 1, 32)
    with pytest.raises(InputError, match="a shared stem has 1 channels of a 'shared' stem"):
        SharedStemConfig(each=SharedStemConfig())


def test_drawn_bands_are_whole_and_every_one_comes(make_batch) -> None:
    tiles, seen = make_batch(S2).tiles["s2"], set()
    for seed in range(40):
        drawn = draw_bands(tiles, 2, ("B01",), torch.Generator().manual_seed(seed))
        assert len(set(drawn.bands)) == 2
        for i, band in enumerate(drawn.bands):
            assert torch.equal(drawn.pixels[:, :, i], tiles.pixels[:, :, S2.bands.index(band)])
        seen |= set(drawn.bands)
    assert seen == {"B02", "B03", "B04", "B08"}
    radar = make_batch(S1).tiles["s1"]
    assert draw_bands(radar, 3, (), torch.Generator()).bands == ("VV", "VH", "VV")


@pytest.mark.parametrize("num_channels", [1, 3])
def test_rs_byol_trains_one_stem_on_both_sensors(num_channels: int, make_batch, generator: torch.Generator) -> None:
    objective = RsByol(config(num_channels), RsByolConfig(hidden=12, dim=6), generator)
    batch = make_batch(S1, S2)
    objective(batch, generator)["loss"].backward()
    assert all(parameter.grad is not None for parameter in objective.encoder.stem.parameters())
    losses = {float(objective(batch, torch.Generator().manual_seed(seed))["loss"].detach()) for seed in range(8)}
    assert len(losses) > 3
    with pytest.raises(InputError, match="rs_byol has a 'sensor' stem, expected a 'shared' one"):
        RsByol(replace(config(1, OPTICAL), stem=EncoderConfig(VitConfig(8, 1, 2), 20.0, (S1,)).stem), RsByolConfig(), generator)
