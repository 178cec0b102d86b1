"""SimMIM, and what RingMo and GFM change of it; msGFM has tests of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.masking import blocks, partial_pixels
from models.objectives.gfm import Gfm, GfmConfig
from models.objectives.ringmo import Ringmo, RingmoConfig
from models.objectives.simmim import EPS, Simmim, SimmimConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.vit import VitConfig, vit_size

Make = Callable[..., Batch]
MakeConfig = Callable[..., EncoderConfig]
Specs = dict[str, SensorSpec]
KINDS = ("simmim", "ringmo", "gfm")
BACKBONES = ("swin", "vit")


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder_of(make_config: MakeConfig, backbone: str, *sensors: SensorSpec) -> EncoderConfig:
    config = make_config(*sensors)
    return config if backbone == "swin" else replace(config, backbone=VitConfig(embed_dim=8, depth=2, num_heads=2))


def build(kind: str, config: EncoderConfig, spread: float = 0.1) -> Simmim:
    settings = {"mask_block_m": 40.0}
    if kind == "gfm":
        teacher = stirred(Encoder(config, seeded(4)), 0.3)
        model: Simmim = Gfm(GfmConfig(config, **settings), teacher, seeded(0))
    else:
        model = (
            Ringmo(RingmoConfig(config, **settings), seeded(0))
            if kind == "ringmo"
            else Simmim(SimmimConfig(config, **settings), seeded(0))
        )
    return stirred(model, spread)


def stirred(model: torch.nn.Module, spread: float) -> torch.nn.Module:
    for number, parameter in enumerate(model.parameters()):
        parameter.data.add_(torch.randn(parameter.shape, generator=seeded(number)) * spread)
    return model


def change(batch: Batch, name: str, **changes: torch.Tensor) -> Batch:
    return replace(batch, tiles={**batch.tiles, name: replace(batch.tiles[name], **changes)})


def spotty(batch: Batch) -> Batch:
    """The batch with noise for validity, and the first sample's upper half unseen."""
    for name, tiles in batch.tiles.items():
        is_valid = torch.rand(tiles.is_valid.shape, generator=seeded(1)) < 0.8
        is_valid[0, :, : is_valid.shape[-2] // 2] = False
        batch = change(batch, name, is_valid=is_valid)
    return batch


def rgb(gsd_m: float = 1.0) -> SensorSpec:
    return SensorSpec("rgb", "passive", "digital_number", "1", gsd_m, ("r", "g", "b"), (1.0, 2.0, 3.0), (0.0,) * 3, (1.0,) * 3)


def test_published_size_of_swin_base() -> None:
    """From the public training log of Swin-B at 192 px with windows of 6."""
    swin = SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), window=6)
    with torch.device("meta"):
        model = Simmim(SimmimConfig(EncoderConfig(swin, 4.0, (rgb(),)), mask_block_m=32.0))
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == {"encoder": 86_725_176 + 128, "decoders": 3_148_800}
    assert sum(count.values()) == 89_874_104


def test_a_vit_predicts_a_patch_from_each_token() -> None:
    with torch.device("meta"):
        model = Simmim(SimmimConfig(EncoderConfig(vit_size("base"), 16.0, (rgb(),)), mask_block_m=32.0))
    assert sum(p.numel() for p in model.decoders.parameters()) == (768 + 1) * 16 * 16 * 3


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_equals_loops(make_config: MakeConfig, make_batch: Make, specs: Specs, kind: str, backbone: str) -> None:
    """Pixel by pixel in float64; the mask comes from the generator as the mask functions draw it."""
    pair = (specs["optical"], specs["aerial"])
    model = build(kind, encoder_of(make_config, backbone, *pair))
    batch, spec = spotty(make_batch(*pair, num=3, size_m=80.0, index=1)), specs["aerial"]
    terms, tiles = model(batch, seeded()), batch.tiles["aerial"]
    pixels, is_valid = model.encoder.normalise(tiles, spec)[0], tiles.is_valid[:, 0]
    if kind == "ringmo":
        hidden = partial_pixels(3, (16, 16), 8, 0.6, 0.6, seeded())
        features = model.encoder.features(pixels.masked_fill(hidden[:, None], 0), is_valid, "aerial")
    else:
        mask = blocks(3, (4, 4), 2, 0.6, seeded())
        hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)
        features = model.encoder.features(pixels, is_valid, "aerial", mask)
    predicted, total = model.decoders["aerial"](features.maps[-1]).detach().double(), 0.0
    for b in range(3):
        is_scored = [(y, x) for y in range(16) for x in range(16) if hidden[b, y, x] and is_valid[b, y, x]]
        error = sum(abs(float(predicted[b, 0, y, x] - pixels[b, 0, y, x].double())) for y, x in is_scored)
        total += error / (len(is_scored) + EPS) / spec.num_bands / 3
    assert terms["reconstruction"].item() == pytest.approx(total, rel=1e-5)
    assert terms["l1/aerial"].item() == pytest.approx(total, rel=1e-5)
    if kind == "gfm":
        total += gfm_term(model, batch, features)
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)


def gfm_term(model: Gfm, batch: Batch, features: object) -> float:
    """Minus the mean cosine of means over valid cells of what enters the last stage."""
    tiles, teacher = batch.tiles["aerial"], model.teacher
    seen = teacher.features(teacher.normalise(tiles, teacher.spec("aerial"))[0], tiles.is_valid[:, 0], "aerial")
    is_cell, means = teacher.cells(tiles.is_valid[:, 0], "aerial"), []
    for encoder, found in ((model.encoder, features), (teacher, seen)):
        late = encoder.backbone.merges[-1](found.maps[-2]) if hasattr(encoder.backbone, "merges") else found.maps[-2]
        means.append(torch.stack([late[b][is_cell[b]].mean(0) for b in range(3)]).double())
    return -F.cosine_similarity(model.head.double()(means[0]), means[1]).mean().item()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_are_not_seen_and_invalid_ones_not_scored(
    make_config: MakeConfig, make_batch: Make, specs: Specs, kind: str, backbone: str
) -> None:
    """Not even through the mean height of a tile."""
    for name in ("optical", "dsm"):
        model = build(kind, encoder_of(make_config, backbone, specs[name]))
        batch = spotty(make_batch(specs[name], num=2))
        pixels, is_valid = batch.tiles[name].pixels, batch.tiles[name].is_valid
        base, broken = model(batch, seeded())["loss"], pixels.masked_fill(~is_valid[:, :, None], torch.nan)
        assert torch.equal(model(change(batch, name, pixels=broken), seeded())["loss"], base)
        panel = model.reconstruct(batch, seeded())[name]
        noise = torch.randn(pixels.shape, generator=seeded(9)) * 5
        for where, is_equal in ((panel.is_hidden, True), (~panel.is_hidden, False)):
            other = change(batch, name, pixels=torch.where(where[:, None, None], pixels + noise, pixels))
            assert torch.equal(model.reconstruct(other, seeded())[name].prediction, panel.prediction) == is_equal


@pytest.mark.parametrize("kind", KINDS)
def test_absent_tiles_count_for_nothing(make_config: MakeConfig, make_batch: Make, specs: Specs, kind: str) -> None:
    model = build(kind, encoder_of(make_config, "swin", specs["optical"]))
    batch = change(make_batch(specs["optical"]), "optical", is_present=torch.zeros(4, 1, dtype=torch.bool))
    terms = model(batch, seeded())
    terms["loss"].backward()
    assert terms["loss"] == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_sensors_take_turns_and_every_step_trains_what_it_uses(
    make_config: MakeConfig, make_batch: Make, specs: Specs, kind: str, backbone: str
) -> None:
    pair = (specs["optical"], specs["radar"])
    model = build(kind, encoder_of(make_config, backbone, *pair))
    seen = [next(t for t in model(make_batch(*pair, index=i), seeded()) if t.startswith("l1/")) for i in range(3)]
    assert seen == ["l1/optical", "l1/radar", "l1/optical"]
    model(spotty(make_batch(*pair)), seeded())["loss"].backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert without
    assert all("radar" in name for name in without)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_equal_the_whole(
    make_config: MakeConfig, make_batch: Make, specs: Specs, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Loss and gradient; validity differs between the halves. What is hidden is split with the batch."""
    model = build(kind, encoder_of(make_config, "swin", specs["optical"]))
    batch, parameters = spotty(make_batch(specs["optical"], num=6)), list(model.parameters())
    hidden = model.hide(batch.tiles["optical"], specs["optical"], seeded())

    def run(part: slice) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        monkeypatch.setattr(model, "hide", lambda *_: hidden[part])
        names = ("pixels", "is_valid", "is_present", "time_days")
        tiles = {k: replace(t, **{n: getattr(t, n)[part] for n in names}) for k, t in batch.tiles.items()}
        loss = model(replace(batch, tiles=tiles, lonlat=batch.lonlat[part]), seeded())["loss"]
        return loss, torch.autograd.grad(loss, parameters)

    (loss, gradients), (first, a), (second, b) = (run(part) for part in (slice(0, 6), slice(0, 3), slice(3, 6)))
    torch.testing.assert_close((first + second) / 2, loss)
    for whole, one, other in zip(gradients, a, b):
        torch.testing.assert_close((one + other) / 2, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(make_config: MakeConfig, make_batch: Make, specs: Specs, kind: str) -> None:
    """Smooth ground that is another one each step."""
    model, draw, losses = build(kind, encoder_of(make_config, "swin", specs["optical"]), spread=0.0), seeded(2), []
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        ground = F.interpolate(torch.randn(8, 1, 2, 2, generator=draw), (16, 16), mode="bilinear")[:, None]
        pixels = ground * torch.tensor([0.05, 0.1]).view(2, 1, 1) + 0.2
        batch = change(make_batch(specs["optical"], num=8), "optical", pixels=pixels)
        terms = model(batch, draw)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        losses.append(terms["reconstruction"].item())
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close(make_config: MakeConfig, make_batch: Make, specs: Specs, kind: str, backbone: str) -> None:
    model, batch = build(kind, encoder_of(make_config, backbone, specs["optical"])), make_batch(specs["optical"], num=8)
    exact = model(batch, seeded())
    rough = model.to(torch.bfloat16)(batch, seeded())
    rough["loss"].backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
    for name, value in rough.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05, abs=0.01)


def test_ringmo_hides_single_pixels(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    """16 blocks of 4 px at 10 m: ceil(0.6 * 16) of them, ceil(0.6 * 16) pixels in each, and every token keeps some in view."""
    model = build("ringmo", encoder_of(make_config, "vit", specs["optical"]))
    hidden = model.hide(make_batch(specs["optical"]).tiles["optical"], specs["optical"], seeded())
    counts = hidden.unflatten(2, (4, 4)).unflatten(1, (4, 4)).sum((2, 4))
    assert set(counts.flatten().tolist()) == {0, 10}
    assert ((counts > 0).sum((1, 2)) == 10).all()


def test_gfm_teacher_sees_everything_and_stays_as_it_is(make_config: MakeConfig, make_batch: Make, specs: Specs) -> None:
    model = build("gfm", encoder_of(make_config, "swin", specs["optical"]))
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model.train()(make_batch(specs["optical"]), seeded())["loss"].backward()
    optimiser.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.teacher.state_dict().items())
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "decoders", "head"}
    own = Gfm(GfmConfig(model.encoder.config, mask_block_m=40.0), model.encoder, seeded(0))
    own.encoder, own.head.weight.data = model.encoder, torch.eye(16)
    own.hide = lambda tiles, *_: torch.zeros(4, 8, 8, dtype=torch.bool)
    assert own.eval()(make_batch(specs["optical"]), seeded())["teacher"].item() == pytest.approx(-1)


def test_gfm_refuses_teachers_of_other_sensors_and_of_one_stage(make_config: MakeConfig, specs: Specs) -> None:
    student = GfmConfig(make_config(specs["radar"]), mask_block_m=40.0)
    with pytest.raises(InputError, match="sensor 'radar' is unknown to this encoder"):
        Gfm(student, Encoder(make_config(specs["dsm"])))
    with pytest.raises(InputError, match=r"student's sensor 'radar'.*expected as in the teacher.*'VH'"):
        Gfm(student, Encoder(make_config(replace(specs["radar"], bands=("VH",)))))
    flat = replace(make_config(specs["radar"]), backbone=VitConfig(embed_dim=8, depth=1, num_heads=2))
    with pytest.raises(InputError, match="has 1 stage, expected at least 2"):
        Gfm(student, Encoder(flat))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_encoder_loads(make_config: MakeConfig, make_batch: Make, specs: Specs, tmp_path: Path, kind: str) -> None:
    model, batch = build(kind, encoder_of(make_config, "vit", specs["optical"])), make_batch(specs["optical"])
    model.encoder.save(tmp_path)
    again = Encoder.load(tmp_path).encode(batch)["optical"].pooled
    torch.testing.assert_close(again, model.encoder.encode(batch)["optical"].pooled)


def test_what_cannot_be_is_refused(make_config: MakeConfig, specs: Specs) -> None:
    swin = make_config(specs["optical"])
    with pytest.raises(InputError, match="simmim has mask_block_m 30, expected a multiple of token_size_m 20"):
        SimmimConfig(swin, mask_block_m=30.0)
    with pytest.raises(InputError, match=r"gfm has mask_ratio 1.0, expected between 0 and 1"):
        GfmConfig(swin, mask_ratio=1.0, mask_block_m=40.0)
    with pytest.raises(InputError, match=r"ringmo has pixel_ratio 0.0"):
        RingmoConfig(swin, mask_block_m=40.0, pixel_ratio=0.0)
    absent = EncoderConfig(VitConfig(embed_dim=8, depth=2, num_heads=2), 20.0, (specs["optical"],), hidden="absent")
    with pytest.raises(InputError, match=r"hidden ground is 'absent'.*set encoder.hidden to 'token'"):
        SimmimConfig(absent, mask_block_m=40.0)
