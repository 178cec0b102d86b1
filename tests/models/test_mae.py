from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.batch import Batch
from models.encoder import EncoderConfig
from models.errors import InputError
from models.objectives.mae import Mae, MaeConfig, masked_mse, patchify
from models.positions import sincos_2d
from models.sensor import SensorSpec
from models.vit import VitConfig, vit_size

Make = Callable[..., Batch]
Specs = dict[str, SensorSpec]
DECODER = VitConfig(embed_dim=16, depth=2, num_heads=2, has_class_token=False)


def build(generator: torch.Generator, *sensors: SensorSpec) -> Mae:
    backbone = VitConfig(embed_dim=16, depth=2, num_heads=2)
    model = Mae(EncoderConfig(backbone, 20.0, sensors, hidden="absent"), MaeConfig(DECODER), generator)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("size", "published"), [("base", 111_907_840), ("large", 329_541_888), ("huge", 657_074_508)])
def test_published_sizes(size: str, published: int) -> None:
    """Published: RGB at 224 px, patches of 16 px (huge: 14), decoder of 8 blocks of 512; both tables of positions counted.

    Ours norms the stem's tokens: two vectors of the encoder's width more.
    """
    patch = 14 if size == "huge" else 16
    rgb = SensorSpec("rgb", "passive", "digital_number", "1", 1.0, ("r", "g", "b"), (1.0, 2.0, 3.0), (0.0,) * 3, (1.0,) * 3)
    decoder = VitConfig(embed_dim=512, depth=8, num_heads=16, has_class_token=False)
    with torch.device("meta"):
        model = Mae(EncoderConfig(vit_size(size), float(patch), (rgb,), hidden="absent"), MaeConfig(decoder))
    width, tokens = model.encoder.config.backbone.embed_dim, (224 // patch) ** 2 + 1
    assert sum(p.numel() for p in model.parameters()) + tokens * (width + 512) - 2 * width == published


def test_the_loss_is_that_of_the_formula_sample_by_sample(generator: torch.Generator, make_batch: Make, specs: Specs) -> None:
    """Encode the visible tokens alone, put mask tokens where something is hidden, decode, compare hidden patches."""
    optical = specs["optical"]
    model, batch = build(generator, optical), make_batch(optical, num=3)
    (made,), *_ = model.predict(batch, seeded())
    pixels = model.encoder.normalise(batch.tiles["optical"], optical)[0]
    is_hidden = made.given.is_hidden.flatten(1)
    assert (is_hidden.sum(1) == 48).all()
    for b in range(3):
        tokens = model.encoder.stem(pixels[b : b + 1], optical).flatten(1, 3) + sincos_2d(16, 8, 8)
        visible = (~is_hidden[b]).nonzero()[:, 0]
        maps, prefix, _ = model.encoder.backbone(tokens[:, visible])
        places = model.mask_token.token.repeat(1, 64, 1)
        places[:, visible] = model.enter(maps[-1])
        outputs, _, _ = model.decoder(torch.cat([model.enter(prefix), places + sincos_2d(16, 8, 8)], 1))
        (patches,) = model.head(outputs[-1][:, None, 1:], optical)
        torch.testing.assert_close(patches[0], made.patches[0][b], atol=1e-5, rtol=1e-5)
    loss = masked_mse(made.patches[0], patchify(pixels, 2), is_hidden, True)
    torch.testing.assert_close(model(batch, seeded())["loss"], loss)


def test_hidden_and_invalid_pixels_are_not_seen(generator: torch.Generator, make_batch: Make, specs: Specs) -> None:
    optical = specs["optical"]
    model, batch = build(generator, optical), make_batch(optical, num=2)
    tiles = batch.tiles["optical"]
    tiles.is_valid[0, 0, :8] = False
    (made,), *_ = model.predict(batch, seeded())
    is_hidden, is_scored = made.given.is_hidden.flatten(1), made.is_scored.flatten(1)
    assert is_hidden[0, :32].all()
    assert int((is_hidden & is_scored)[0].sum()) == 24  # 75 % of the 32 that are valid
    assert not is_scored[0, :32].any()
    hidden = is_hidden.unflatten(1, (8, 8)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    changed = torch.where(hidden[:, None, None], tiles.pixels + 1, tiles.pixels)
    (other,), *_ = model.predict(replace(batch, tiles={"optical": replace(tiles, pixels=changed)}), seeded())
    assert torch.equal(made.patches[0], other.patches[0])


def test_sensors_take_turns_and_every_step_trains_what_it_uses(generator: torch.Generator, make_batch: Make, specs: Specs) -> None:
    pair = (specs["optical"], specs["radar"])
    model = build(generator, *pair)
    seen = [next(name for name in model(make_batch(*pair, index=index), seeded()) if "/" in name) for index in range(3)]
    assert seen == ["mse/optical", "mse/radar", "mse/optical"]
    model(make_batch(*pair), seeded())["loss"].backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without
    assert all("radar" in name for name in without)


def test_it_learns(generator: torch.Generator, make_batch: Make, specs: Specs) -> None:
    optical = specs["optical"]
    model = build(generator, optical)
    batch = make_batch(optical, num=8)
    ramp = torch.linspace(-1, 1, 16)
    batch.tiles["optical"].pixels[:] = (ramp[:, None] + ramp)[None, None, None] * 0.05 + 0.2
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(60):
        loss = model(batch, seeded(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]


def test_pictures_are_in_physical_units(generator: torch.Generator, make_batch: Make, specs: Specs) -> None:
    optical = specs["optical"]
    batch = make_batch(optical)
    panel = build(generator, optical).reconstruct(batch, seeded())["optical"]
    torch.testing.assert_close(panel.target, batch.tiles["optical"].pixels[:, 0])
    assert panel.prediction.shape == panel.target.shape


def test_what_cannot_be_an_mae_is_refused(make_config: Callable[..., EncoderConfig], specs: Specs) -> None:
    with pytest.raises(InputError, match="needs a vit whose hidden tokens are absent"):
        Mae(make_config(), MaeConfig(DECODER))
    with pytest.raises(InputError, match="'absent' needs a vit"):
        replace(make_config(), hidden="absent")
    encoder = EncoderConfig(VitConfig(embed_dim=16, depth=2, num_heads=2), 20.0, (specs["optical"],), hidden="absent")
    with pytest.raises(InputError, match="it can have none of its own"):
        MaeConfig(replace(DECODER, has_class_token=True))
    again = EncoderConfig.from_dict(encoder.to_dict())
    assert again == encoder
    with pytest.raises(InputError, match=r"encoder\.backbone\.kind is 'vat', expected one of 'swin', 'vit'"):
        EncoderConfig.from_dict({**encoder.to_dict(), "backbone": {"kind": "vat"}})
