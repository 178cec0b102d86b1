from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.batch import Batch
from models.decoders import LaplacianPyramid
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.objectives.scale_mae import ScaleMae, ScaleMaeConfig, average, enlarge, low_pass
from models.positions import sincos_2d
from models.sensor import SensorSpec
from models.stems.band_groups import BandGroupStemConfig
from models.vit import VitConfig

Make = Callable[..., Batch]
Specs = dict[str, SensorSpec]
DECODER = VitConfig(embed_dim=16, depth=1, num_heads=2, has_class_token=False)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder_of(*sensors: SensorSpec) -> EncoderConfig:
    return EncoderConfig(VitConfig(embed_dim=16, depth=2, num_heads=2), 20.0, sensors, hidden="absent")


def build(*sensors: SensorSpec, **changes: object) -> ScaleMae:
    settings = {"head_width": 8, "head_depth": 1, **changes}
    model = ScaleMae(encoder_of(*sensors), ScaleMaeConfig(DECODER, **settings), seeded(0))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=seeded(parameter.numel())) * 0.1)
    return model


def change(batch: Batch, name: str, **changes: torch.Tensor) -> Batch:
    return replace(batch, tiles={**batch.tiles, name: replace(batch.tiles[name], **changes)})


def spotty(batch: Batch) -> Batch:
    """The batch with noise for validity, and the upper half of the first sample unseen."""
    for name, tiles in batch.tiles.items():
        is_valid = torch.rand(tiles.is_valid.shape, generator=seeded(1)) < 0.8
        is_valid[0, :, : is_valid.shape[-2] // 2] = False
        batch = change(batch, name, is_valid=is_valid)
    return batch


@pytest.mark.parametrize("patch", [2, 4, 6, 16])
def test_the_pyramid_ends_at_the_input_and_at_twice_its_size(specs: Specs, patch: int) -> None:
    head = LaplacianPyramid(64, 64, 2, [specs["optical"]], patch * 10.0)
    initialise(head, seeded())
    low, high = head(torch.randn(1, 3, 2, 64, generator=seeded()), "optical")
    assert low.std() > 0.05  # narrow layers that begin too small would let no gradient through
    assert high.std() > 0.05
    assert (tuple(low.shape), tuple(high.shape)) == ((1, 2, 3 * patch, 2 * patch), (1, 2, 6 * patch, 4 * patch))


def test_bands_are_what_they_are_said_to_be(make_batch: Make, specs: Specs) -> None:
    """Low: averages of squares, interpolated; high: the image without them. Equal widths add up to the image."""
    model = build(specs["optical"], high_tokens=1.0, low_tokens=1.0).eval()
    batch = make_batch(specs["optical"], num=2)
    (given,) = model.give(batch, seeded())
    (made,), _, _ = model.predict(batch, seeded())
    assert given.pixels.shape[-2:] == (8, 8)
    assert made.targets[0].shape[-2:] == (8, 8)
    squares = given.target.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)).mean((-1, -3))
    up = torch.nn.functional.interpolate(squares, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(made.targets[1], given.target - up)
    torch.testing.assert_close(made.targets[0], torch.nn.functional.interpolate(squares, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(low_pass(given.target, given.is_valid, (4, 4), (16, 16)) + made.targets[1], given.target)
    torch.testing.assert_close(given.pixels, torch.nn.functional.avg_pool2d(given.target, 2))


def test_averages_leave_out_what_is_invalid() -> None:
    image = torch.tensor([[[[1.0, 3.0, 5.0, 9.0], [5.0, 7.0, 9.0, torch.nan]]]])
    is_valid = torch.tensor([[[True, True, True, False], [True, True, True, False]]])
    mean, share = average(image, is_valid, (1, 2))
    assert (mean.tolist(), share.tolist()) == ([[[[4.0, 7.0]]]], [[[1.0, 0.5]]])
    assert average(image, is_valid & False, (1, 2))[0].tolist() == [[[[0.0, 0.0]]]]
    only_left = is_valid & torch.tensor([True, True, False, False])
    assert low_pass(image, only_left, (1, 2), (2, 4))[0, 0, 0].tolist() == [4.0, 4.0, 4.0, 0.0]


def test_windows_of_known_places() -> None:
    """A ramp stays one: linear sampling of a window reads the ramp at the window's own places."""
    size = 16
    ramp = (torch.arange(size) + 0.5) / size
    image = torch.stack([ramp[:, None].expand(size, size), ramp.expand(size, size)])[None].repeat(2, 1, 1, 1)
    is_valid = torch.ones(2, size, size, dtype=torch.bool)
    start, share = torch.tensor([[0.0, 0.0], [0.25, 0.125]]), torch.tensor([1.0, 0.5])
    pixels, seen = enlarge(image, is_valid, start, share)
    torch.testing.assert_close(pixels[0], image[0])
    torch.testing.assert_close(pixels[1, 0, :, 3], 0.25 + 0.5 * ramp)
    torch.testing.assert_close(pixels[1, 1, 3], 0.125 + 0.5 * ramp)
    assert seen.all()
    is_valid[1, 4, 2] = False  # the window's first pixel
    seen = enlarge(image.masked_fill(~is_valid[:, None], torch.nan), is_valid, start, share)[1]
    assert seen[0].all()
    assert (~seen[1]).nonzero().tolist() == [[y, x] for y in range(3) for x in range(3)]


def test_positions_are_ground_distances(make_batch: Make, specs: Specs) -> None:
    """A token of a window of share s at half the resolution is 2 s tokens of ground wide, in encoder and decoder."""
    model, batch = build(specs["optical"], window_area=(0.25, 0.25)), make_batch(specs["optical"], num=2)
    for mode, scale in ((True, 1.0), (False, 2.0)):
        (given,) = model.train(mode).give(batch, seeded())
        assert given.grid.scale.tolist() == [scale, scale]
        stem = model.encoder.stem(given.pixels, given.spec).flatten(1, 3)
        tokens = model.encode_tokens([given], torch.arange(16).expand(2, -1), seeded())
        torch.testing.assert_close(tokens, stem + sincos_2d(16, 4, 4, scale))
        torch.testing.assert_close(model.place(given, seeded())[0], sincos_2d(16, 4, 4, scale))


def test_loss_equals_loops(make_batch: Make, specs: Specs) -> None:
    """Pixel by pixel in float64, where pixels are invalid and ground is unseen."""
    model = build(specs["optical"], high_weight=0.5)
    batch = spotty(make_batch(specs["optical"], num=3))
    terms = model(batch, seeded())
    (made,), _, _ = model.predict(batch, seeded())
    given, losses = made.given, []
    assert not made.is_scored.all()
    for sample in range(3):
        parts = []
        for band, power in ((0, 2), (1, 1)):
            predicted, wanted = made.patches[band][sample].detach().double(), made.targets[band][sample].double()
            is_valid = (given.is_valid_half, given.is_valid)[band][sample]
            side = predicted.shape[-1] // 4
            total, count = 0.0, 0
            for y in range(predicted.shape[1]):
                for x in range(predicted.shape[2]):
                    if made.is_scored[sample, 0, 0, y // side, x // side] and is_valid[y, x]:
                        count += 1
                        total += sum(abs(float(predicted[c, y, x] - wanted[c, y, x])) ** power for c in range(2)) / 2
            parts.append(total / max(count, 1))
        losses.append(parts[0] + 0.5 * parts[1])
    assert terms["loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_hidden_and_invalid_ground_is_not_seen_and_invalid_not_scored(make_batch: Make, specs: Specs) -> None:
    for sensor in ("optical", "dsm"):
        model, batch = build(specs[sensor]), spotty(make_batch(specs[sensor], num=2))
        base = model(batch, seeded())["loss"]
        broken = batch.tiles[sensor].pixels.masked_fill(~batch.tiles[sensor].is_valid[:, :, None], torch.nan)
        assert torch.equal(model(change(batch, sensor, pixels=broken), seeded())["loss"], base)
        model.eval()
        (made,), _, _ = model.predict(batch, seeded())
        side = batch.tiles[sensor].pixels.shape[-1] // 4
        hidden = made.given.is_hidden[:, 0, 0].repeat_interleave(side, 1).repeat_interleave(side, 2)
        assert hidden[0, : 2 * side].all()
        for where, is_equal in ((hidden, True), (~hidden, False)):
            pixels = batch.tiles[sensor].pixels
            other = change(batch, sensor, pixels=torch.where(where[:, None, None], pixels + 1 + pixels.roll(1, -1), pixels))
            (again,), _, _ = model.predict(other, seeded())
            assert all(torch.equal(a, b) for a, b in zip(made.patches, again.patches)) == is_equal


def test_halves_equal_the_whole(make_batch: Make, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient; windows and what is hidden are split with the batch, and validity differs."""
    model, batch = build(specs["optical"]), spotty(make_batch(specs["optical"], num=4))
    parameters, draw = list(model.parameters()), torch.rand(3, 4, generator=seeded())
    hidden = torch.rand(4, 1, 1, 4, 4, generator=seeded()) < 0.75

    def run(part: slice) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        monkeypatch.setattr("models.objectives.scale_mae.torch.rand", lambda *_, **__: draw[:, part])
        monkeypatch.setattr(model, "hide", lambda seen, _: [hidden[part] | ~seen[0]])
        names = ("pixels", "is_valid", "is_present", "time_days")
        tiles = {k: replace(t, **{n: getattr(t, n)[part] for n in names}) for k, t in batch.tiles.items()}
        loss = model(replace(batch, tiles=tiles, lonlat=batch.lonlat[part]), seeded())["loss"]
        return loss, torch.autograd.grad(loss, parameters)

    (loss, gradients), (first, a), (second, b) = (run(part) for part in (slice(0, 4), slice(0, 2), slice(2, 4)))
    torch.testing.assert_close((first + second) / 2, loss)
    for whole, one, other in zip(gradients, a, b):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-3, atol=1e-6)


def test_every_part_of_the_step_is_trained(make_batch: Make, specs: Specs) -> None:
    model = build(specs["optical"], specs["aerial"])
    model(make_batch(specs["optical"], specs["aerial"]), seeded())["loss"].backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without
    assert all("aerial" in name for name in without)
    still = [n for n, p in model.named_parameters() if p.grad is not None and p.numel() and not p.grad.any()]
    assert not still


def test_it_learns_and_bf16_is_close(make_batch: Make, specs: Specs) -> None:
    model = ScaleMae(encoder_of(specs["optical"]), ScaleMaeConfig(DECODER, head_width=8, head_depth=1), seeded(0))
    batch, optimiser, losses = make_batch(specs["optical"], num=4, size_m=320.0), torch.optim.AdamW(model.parameters(), 5e-3), []
    ramp = torch.linspace(-1, 1, 32)
    batch.tiles["optical"].pixels[:] = (ramp[:, None] + ramp)[None, None, None] * 0.05 + 0.2
    for step in range(60):
        loss = model(batch, seeded(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    exact = model(batch, seeded())["loss"].item()
    rough = model.to(torch.bfloat16)(batch, seeded())["loss"]
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact, rel=0.1)


def test_pictures_are_whole_tiles_in_physical_units(make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["dsm"], size_m=160.0)
    panel = build(specs["dsm"]).reconstruct(batch, seeded())["dsm"]
    torch.testing.assert_close(panel.target, batch.tiles["dsm"].pixels[:, 0], rtol=1e-4, atol=1e-3)
    assert panel.prediction.shape == panel.target.shape
    assert panel.is_hidden.shape == panel.is_valid.shape == panel.target[:, 0].shape


def test_saved_encoder_loads(make_batch: Make, specs: Specs, tmp_path: Path) -> None:
    model, batch = build(specs["optical"]), make_batch(specs["optical"])
    model.encoder.save(tmp_path)
    again = Encoder.load(tmp_path).encode(batch)["optical"].pooled
    torch.testing.assert_close(again, model.encoder.encode(batch)["optical"].pooled)


def test_what_cannot_be_halved_is_refused(make_batch: Make, specs: Specs) -> None:
    with pytest.raises(InputError, match=r"have \(10, 10\) pixels, expected multiples of 4: two tokens"):
        build(specs["optical"])(make_batch(specs["optical"], size_m=100.0), seeded())
    with pytest.raises(InputError, match="is 5 pixels of sensor 'odd', expected an even number"):
        build(replace(specs["optical"], name="odd", gsd_m=4.0))
    grouped = replace(encoder_of(specs["optical"]), stem=BandGroupStemConfig(band_groups=(("red",), ("nir",))))
    with pytest.raises(InputError, match="dates together or groups of bands"):
        ScaleMae(grouped, ScaleMaeConfig(DECODER))
    with pytest.raises(InputError, match="its bands are of whole images"):
        ScaleMaeConfig(DECODER, normalise_patches=True)
