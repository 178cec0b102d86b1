from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.batch import Batch
from models.encoder import EncoderConfig
from models.errors import InputError
from models.masking import blocks
from models.objectives.msgfm import Msgfm, MsgfmConfig
from models.objectives.simmim import EPS, masked_l1
from models.sensor import SensorSpec

Make = Callable[..., Batch]
MakeConfig = Callable[..., EncoderConfig]
Specs = dict[str, SensorSpec]


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(config: EncoderConfig, **changes: float) -> Msgfm:
    model = Msgfm(MsgfmConfig(config, **{"mask_block_m": 40.0, **changes}), seeded(0))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=seeded(parameter.numel())) * 0.1)
    return model


def change(batch: Batch, name: str, **changes: torch.Tensor) -> Batch:
    return replace(batch, tiles={**batch.tiles, name: replace(batch.tiles[name], **changes)})


def rows(batch: Batch, part: slice) -> Batch:
    names = ("pixels", "is_valid", "is_present", "time_days")
    tiles = {k: replace(t, **{n: getattr(t, n)[part] for n in names}) for k, t in batch.tiles.items()}
    return replace(batch, tiles=tiles, lonlat=batch.lonlat[part])


def spotty(batch: Batch, share: float = 0.7) -> Batch:
    """The batch with a share of pixels valid."""
    for name, tiles in batch.tiles.items():
        batch = change(batch, name, is_valid=torch.rand(tiles.is_valid.shape, generator=seeded(1)) < share)
    return batch


def test_source_cycles_over_the_sensors_in_the_encoders_order(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config())
    sources = []
    for index in range(4):
        terms = model(make_batch(specs["dsm"], specs["radar"], specs["optical"], index=index), seeded())
        names = [name.removeprefix("l1/") for name in terms if name.startswith("l1/")]
        assert [name.split("->")[1] for name in names] == ["optical", "radar", "dsm"]
        sources.append(names[0].split("->")[0])
    assert sources == ["optical", "radar", "dsm", "optical"]


@pytest.mark.parametrize("index", [0, 1])
def test_loss_equals_loops(make_config: MakeConfig, make_batch: Make, specs: Specs, index: int) -> None:
    """Pixel by pixel, for a 10 m sensor and a 5 m one; the mask and lots come from the generator in the same order."""
    pair = [specs["optical"], specs["aerial"]]
    model = build(make_config(*pair, num_experts=2))
    batch = spotty(make_batch(*pair, num=5, size_m=80.0, index=index))
    terms = model(batch, seeded())

    draw, source = seeded(), pair[index]
    mask = blocks(5, (4, 4), 2, 0.6, draw)
    is_cross = torch.rand(5, generator=draw) < 0.5
    assert 0 < is_cross.sum() < 5
    tiles = {spec.name: batch.tiles[spec.name] for spec in pair}
    seen, _ = model.encoder.normalise(tiles[source.name], source)
    features = model.encoder.features(seen, tiles[source.name].is_valid[:, 0], source.name, mask)
    maps, balance = features.maps, features.balance
    total, per_target = 0.0, {spec.name: [] for spec in pair}
    for sample in range(5):
        target = pair[1 - index] if is_cross[sample] else source
        patch = round(20 / target.gsd_m)
        predicted = model.decoders[target.name](maps[-1])[sample]
        error, count = 0.0, 0
        for y in range(predicted.shape[1]):
            for x in range(predicted.shape[2]):
                if mask[sample, y // patch, x // patch] and tiles[target.name].is_valid[sample, 0, y, x]:
                    count += 1
                    for c in range(target.num_bands):
                        value = (tiles[target.name].pixels[sample, 0, c, y, x] - target.mean[c]) / target.std[c]
                        error += abs(predicted[c, y, x].item() - value.item())
        share = error / (count + EPS) / target.num_bands
        per_target[target.name].append(share)
        total += share / 5
    assert terms["reconstruction"].item() == pytest.approx(total, rel=1e-4)
    assert terms["loss"].item() == pytest.approx(total + 0.01 * balance.item(), rel=1e-4)
    assert balance.item() == pytest.approx(terms["balance"].item())
    for name, shares in per_target.items():
        assert terms[f"l1/{source.name}->{name}"].item() == pytest.approx(sum(shares) / len(shares), rel=1e-3)


def test_only_hidden_valid_target_pixels_count(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    """Nothing outside mask and validity moves the loss; something inside does."""
    model = build(make_config(), cross_sensor_probability=1.0)
    batch = spotty(make_batch(specs["optical"], specs["aerial"]))
    target = batch.tiles["aerial"]
    is_scored = model.reconstruct(batch, seeded())["aerial"].is_hidden[:, None] & target.is_valid
    base = model(batch, seeded())["loss"]
    noise = torch.randn(target.pixels.shape, generator=seeded(9))
    elsewhere = torch.where(is_scored[:, :, None], target.pixels, target.pixels + noise)
    assert torch.equal(model(change(batch, "aerial", pixels=elsewhere), seeded())["loss"], base)
    broken = target.pixels.masked_fill(~target.is_valid[:, :, None], torch.nan)
    assert torch.equal(model(change(batch, "aerial", pixels=broken), seeded())["loss"], base)
    within = torch.where(is_scored[:, :, None], target.pixels + noise, target.pixels)
    assert not torch.equal(model(change(batch, "aerial", pixels=within), seeded())["loss"], base)


@pytest.mark.parametrize("source", ["optical", "dsm"])
def test_hidden_source_pixels_do_not_reach_the_prediction(
    make_config: MakeConfig, make_batch: Make, specs: Specs, source: str
) -> None:
    """Not even through the mean height of a tile."""
    model = build(make_config())
    batch = make_batch(specs[source], specs["radar"], index=0 if source == "optical" else 1)
    panels = model.reconstruct(batch, seeded())
    assert panels[source].is_source
    pixels = batch.tiles[source].pixels
    noise = torch.randn(pixels.shape, generator=seeded(9)) * 5
    hidden = panels[source].is_hidden[:, None, None]
    for where, is_equal in ((hidden, True), (~hidden, False)):
        other = model.reconstruct(change(batch, source, pixels=torch.where(where, pixels + noise, pixels)), seeded())
        for name, panel in panels.items():
            assert torch.equal(panel.prediction, other[name].prediction) == is_equal


def test_reconstruction_is_in_physical_units(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config())
    batch = make_batch(*specs.values(), index=1)
    panels = model.reconstruct(batch, seeded())
    assert [name for name, panel in panels.items() if panel.is_source] == ["radar"]
    for name, panel in panels.items():
        torch.testing.assert_close(panel.target, batch.tiles[name].pixels[:, 0], rtol=1e-4, atol=1e-3)
        assert panel.prediction.shape == panel.target.shape
        assert panel.is_hidden.shape == panel.is_valid.shape == panel.target[:, 0].shape
        assert panel.is_hidden.float().mean().item() == pytest.approx(10 / 16)
    # The same ground is hidden, at each sensor's own pixels.
    fine, coarse = panels["aerial"].is_hidden, panels["optical"].is_hidden
    assert torch.equal(fine, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_unpaired_samples_reconstruct_themselves(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config(), cross_sensor_probability=1.0)
    batch = make_batch(specs["optical"], specs["radar"])
    paired = torch.tensor([[True], [False], [True], [False]])
    sensors = model.sensors(batch)
    draw = model._draw_targets(change(batch, "radar", is_present=paired), sensors, "optical", seeded())
    assert draw.tolist() == [[False, True, False, True], [True, False, True, False]]
    terms = model(make_batch(specs["radar"], index=3), seeded())
    assert terms["reconstruction"].item() == pytest.approx(terms["l1/radar->radar"].item(), rel=1e-4)


def test_other_sensors_are_drawn_evenly(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config())
    batch = make_batch(*specs.values(), num=3000, size_m=20.0)
    share = model._draw_targets(batch, model.sensors(batch), "radar", seeded()).float()
    assert (share.sum(0) == 1).all()
    torch.testing.assert_close(share.mean(1), torch.tensor([1 / 6, 1 / 2, 1 / 6, 1 / 6]), atol=0.03, rtol=0)


def test_nothing_to_reconstruct_is_zero_not_nan(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config())
    batch = spotty(make_batch(specs["optical"], specs["dsm"]), share=0.0)
    terms = model(batch, seeded())
    terms["loss"].backward()
    assert terms["reconstruction"] == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_halves_equal_the_whole(make_config: MakeConfig, make_batch: Make, specs: Specs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient; validity differs between the halves. Drawn masks and targets are split with the batch."""
    model = build(make_config())
    batch = spotty(make_batch(specs["optical"], specs["dsm"], num=6))
    batch = change(batch, "dsm", is_valid=batch.tiles["dsm"].is_valid & (torch.arange(6) > 3).view(6, 1, 1, 1))
    parameters = list(model.parameters())
    mask = blocks(6, (8, 8), 2, 0.6, seeded())
    is_cross = torch.tensor([True, False, False, False, True, True])

    def run(part: slice) -> tuple[torch.Tensor, list[torch.Tensor]]:
        monkeypatch.setattr("models.objectives.simmim.blocks", lambda *_: mask[part])
        monkeypatch.setattr(model, "_draw_targets", lambda *_: torch.stack([~is_cross[part], is_cross[part]]))
        loss = model(rows(batch, part), seeded())["loss"]
        return loss, torch.autograd.grad(loss, parameters, allow_unused=True)

    loss, gradients = run(slice(0, 6))
    (first, first_gradients), (second, second_gradients) = run(slice(0, 3)), run(slice(3, 6))
    torch.testing.assert_close((first + second) / 2, loss)
    for whole, a, b in zip(gradients, first_gradients, second_gradients):
        if whole is not None:
            torch.testing.assert_close((a + b) / 2, whole, rtol=1e-4, atol=1e-6)


def test_dates_count_as_samples(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config())
    batch = make_batch(specs["optical"], specs["radar"], num=2, times=3)
    names = ("pixels", "is_valid", "is_present", "time_days")
    flat = {k: replace(t, **{n: getattr(t, n).flatten(0, 1)[:, None] for n in names}) for k, t in batch.tiles.items()}
    expected = model(Batch(flat, torch.zeros(6, 2)), seeded())["loss"]
    assert torch.equal(model(batch, seeded())["loss"], expected)


def test_every_part_of_the_batch_is_trained_and_nothing_else(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    """Decoders take part whatever is drawn, so all ranks run the same modules; other sensors get no gradient at all."""
    for probability in (0.0, 1.0):
        model = build(make_config(num_experts=2), cross_sensor_probability=probability)
        model(make_batch(specs["optical"], specs["radar"]), seeded())["loss"].backward()
        for name, parameter in model.named_parameters():
            used = ("projections.optical" in name, "decoders.optical" in name, "decoders.radar" in name, "encoder." in name)
            is_used = any(used) and not any(f"projections.{s}" in name for s in ("radar", "dsm", "aerial"))
            assert (parameter.grad is not None) == is_used, name
            if used[1] or used[2]:
                is_target = used[1] if probability == 0 else used[2]
                assert (parameter.grad.abs().sum() > 0) == is_target, name
            elif is_used:
                assert parameter.grad.abs().sum() > 0, name


def test_same_generator_same_loss(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config(num_experts=4, drop_path=0.2))
    batch = make_batch(specs["optical"], specs["radar"])
    losses = [model(batch, seeded(seed))["loss"] for seed in (1, 1, 2)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_bfloat16_is_close(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config(num_experts=4, capacity_factor=4.0))
    batch = make_batch(*specs.values(), num=8)
    exact = model(batch, seeded())
    rough = model.to(torch.bfloat16)(batch, seeded())
    rough["loss"].backward()
    for name in exact:
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(exact[name].item(), rel=0.02)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}


def test_learns_structure(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    """Radar that follows optical over smooth ground: a few steps of Adam find much of it."""
    model = Msgfm(MsgfmConfig(make_config(num_experts=2), mask_block_m=40.0), seeded(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    draw, losses = seeded(2), []
    for step in range(60):
        batch = make_batch(specs["optical"], specs["radar"], num=8, index=step)
        ground = F.interpolate(torch.randn(8, 1, 2, 2, generator=draw), (16, 16), mode="bilinear")[:, None]
        batch = change(batch, "optical", pixels=ground * torch.tensor([0.05, 0.1]).view(2, 1, 1) + 0.2)
        batch = change(batch, "radar", pixels=ground * -4 - 12)
        loss = model(batch, draw)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


def test_masked_l1_by_hand() -> None:
    predicted = torch.tensor([[[[1.0, 2]], [[3, 4]]]])  # one sample, two bands, 1 x 2 pixels
    error = masked_l1(predicted, torch.zeros(1, 2, 1, 2), torch.tensor([[[True, False]]]))
    assert error.item() == pytest.approx((1 + 3) / 1 / 2, rel=1e-4)


def test_refuses_what_cannot_be_paired(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build(make_config())
    far = make_batch(specs["radar"], size_m=80.0).tiles["radar"]
    batch = make_batch(specs["optical"])
    with pytest.raises(InputError, match=r"'optical': \(4, 1, 8, 8\), 'radar': \(4, 1, 4, 4\).*expected equal"):
        model(replace(batch, tiles={**batch.tiles, "radar": far}), seeded())
    with pytest.raises(InputError, match="mask_block_m 30, expected a multiple of token_size_m 20"):
        MsgfmConfig(make_config(), mask_block_m=30.0)
