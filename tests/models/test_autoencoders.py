"""SatMAE, S2MAE, Prithvi, DOFA and loom: what each hides, is told and is scored on."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.objectives.autoencoder import MaskedAutoencoder, mean_by_sample
from models.objectives.dofa import Dofa, DofaConfig, TaughtDofa, dofa_encoder
from models.objectives.loom import Loom, LoomConfig, agreement, loom_encoder
from models.objectives.mae import Mae, MaeConfig
from models.objectives.prithvi import V1, V2, Prithvi, PrithviConfig, prithvi_encoder
from models.objectives.s2mae import S2mae, S2maeConfig, cube_encoder, cube_positions
from models.objectives.satmae import Satmae, SatmaeConfig, group_encoder, temporal_encoder
from models.objectives.simclr import nt_xent
from models.patches import patchify
from models.position_embedding import PositionConfig, PositionEmbedding, TokenGrid
from models.positions import lonlat, prithvi_time, satmae_time, sincos_1d, sincos_2d, sincos_3d
from models.sensor import SensorSpec
from models.stems.cubes import CubeStemConfig
from models.stems.dofa import DofaStemConfig
from models.stems.sensor import SensorStemConfig
from models.vit import VitConfig, vit_size

Make = Callable[..., Batch]
VIT = VitConfig(embed_dim=32, depth=2, num_heads=2)
DECODER = VitConfig(embed_dim=32, depth=1, num_heads=2, has_class_token=False)
BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B11", "B12")
OPTICAL = SensorSpec(
    "optical",
    "passive",
    "surface_reflectance",
    "1",
    10.0,
    BANDS,
    (492.0, 560.0, 665.0, 833.0, 704.0, 740.0, 1614.0, 2202.0),
    (0.1,) * 8,
    (0.05,) * 8,
)
RADAR = SensorSpec("radar", "active", "sigma0", "dB", 10.0, ("VV",), (None,), (-12.0,), (4.0,), (), (5.405,), ("VV",))
BOTH = (OPTICAL, RADAR)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objectives() -> dict[str, MaskedAutoencoder]:
    """Return one of each, two of those that come in two."""
    made: dict[str, MaskedAutoencoder] = {
        "satmae_temporal": Satmae(
            temporal_encoder(VIT, 20.0, BOTH, 12), SatmaeConfig(DECODER, positions=PositionConfig(time_width=12)), seeded()
        ),
        "satmae_group": Satmae(
            group_encoder(VIT, 20.0, BOTH, 8), SatmaeConfig(DECODER, positions=PositionConfig(group_width=4)), seeded()
        ),
        "s2mae": S2mae(
            cube_encoder(VIT, 20.0, BOTH, learned_grid=8),
            S2maeConfig(DECODER, positions=cube_positions(CubeStemConfig(), BOTH, 8), sum_weight=1.0),
            seeded(),
        ),
        "prithvi": Prithvi(prithvi_encoder(VIT, 20.0, BOTH), PrithviConfig(DECODER, positions=V1), seeded()),
        "prithvi_v2": Prithvi(prithvi_encoder(VIT, 20.0, BOTH, V2), PrithviConfig(DECODER, positions=V2), seeded()),
        "dofa": Dofa(dofa_encoder(VIT, 20.0, BOTH, DofaStemConfig(kernel_px=2, padding_px=0)), DofaConfig(DECODER), seeded()),
        "dofa_taught": TaughtDofa(
            dofa_encoder(VIT, 20.0, BOTH, DofaStemConfig(kernel_px=2, padding_px=0)),
            DofaConfig(DECODER),
            Encoder(EncoderConfig(replace(VIT, embed_dim=16), 20.0, BOTH), seeded(1)),
            seeded(),
        ),
        "loom": Loom(loom_encoder(VIT, 20.0, BOTH), LoomConfig(DECODER), seeded()),
    }
    return made


@pytest.fixture
def batch(make_batch: Make) -> Batch:
    """Four sites, two sensors, three dates, half of a tile invalid, one tile absent."""
    made = make_batch(*BOTH, times=3)
    made.tiles["optical"].is_valid[0, 0, :8] = False
    made.tiles["radar"].is_present[1, 2] = False
    for tiles in made.tiles.values():
        tiles.time_days[:] = torch.tensor([18_000.0, 18_090.5, 18_200.0])
    made.lonlat[:] = torch.tensor([8.5, 52.0])
    return made


@pytest.mark.parametrize("name", list(objectives()))
def test_every_step_trains_what_it_uses_and_nothing_hidden_is_seen(name: str, batch: Batch) -> None:
    model = objectives()[name]
    made, _, _ = model.predict(batch, seeded())
    for part in made:
        given = part.given
        assert (given.is_hidden | given.is_seen).all()
        assert (part.is_scored == (given.is_hidden & given.is_seen)).all()
    terms = model(batch, seeded())
    assert terms["loss"].isfinite()
    terms["loss"].backward()
    used = {part.given.spec.name for part in made}
    for key, parameter in model.named_parameters():
        is_other = any(f".{name}" in key for name in ("optical", "radar") if name not in used)
        assert (parameter.grad is None) == is_other, key
    name, tiles = made[0].given.spec.name, batch.tiles[made[0].given.spec.name]
    hidden = made[0].given.is_hidden
    assert 0.5 < float(hidden.float().mean()) < 1
    # What is hidden in every group may change, and nothing comes of it.
    hidden_px = hidden.all(2).repeat_interleave(2, -1).repeat_interleave(2, -2).view(4, 3, 1, 16, 16)
    changed = replace(tiles, pixels=torch.where(hidden_px, tiles.pixels + 0.05, tiles.pixels))
    again, _, _ = model.predict(replace(batch, tiles={**batch.tiles, name: changed}), seeded())
    for one, other in zip(made[0].patches, again[0].patches):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", list(objectives()))
def test_halves_make_the_whole(name: str, batch: Batch) -> None:
    """The mean over ranks is the loss of the whole batch: with the same tokens hidden, halves average to the whole.

    What compares samples with one another is left out: `test_joint.py` has it on ranks.
    """
    model = objectives()[name].eval()
    if name == "loom":
        model.config = replace(model.config, contrast_weight=0.0)
    hidden = model.hide

    def halves(part: slice) -> Batch:
        names = ("pixels", "is_valid", "is_present", "time_days")
        tiles = {k: replace(t, **{n: getattr(t, n)[part] for n in names}) for k, t in batch.tiles.items()}
        return Batch(tiles, batch.lonlat[part])

    drawn: list[torch.Tensor] = []

    def remember(seen: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
        drawn[:] = hidden(seen, generator)
        return drawn

    model.hide = remember  # type: ignore[method-assign]
    whole = model(batch, seeded())["loss"]
    parts, kept = [], list(drawn)
    for half in (slice(0, 2), slice(2, 4)):
        start, stop = half.start * (len(kept[0]) // 4), half.stop * (len(kept[0]) // 4)
        model.hide = lambda seen, generator, a=start, b=stop: [part[a:b] for part in kept]  # type: ignore[method-assign, misc]
        parts.append(model(halves(half), seeded())["loss"])
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(objectives()))
def test_it_runs_in_bfloat16_and_its_encoder_is_kept(name: str, batch: Batch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = objectives()[name]
    expected = model(batch, seeded())["loss"]
    low = objectives()[name].bfloat16()(batch, seeded())["loss"]
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.02)
    model.encoder.save(tmp_path)
    again = Encoder.load(tmp_path)
    found, wanted = again.encode(batch), model.encoder.encode(batch)
    assert all(torch.equal(found[key].pooled, wanted[key].pooled) for key in wanted)
    panels = model.reconstruct(batch, seeded())
    for key, panel in panels.items():
        seen, pixels = panel.is_valid[:, None], batch.tiles[key].pixels.flatten(0, 1)
        torch.testing.assert_close(panel.target * seen, pixels * seen)
        assert panel.prediction.shape == panel.target.shape


def test_the_loss_over_groups_is_the_formula(batch: Batch) -> None:
    """Per hidden token the mean squared error over its own group's scaled pixels; per sample their mean; then over samples."""
    model = objectives()["satmae_group"].double()
    batch = replace(batch, tiles={k: replace(t, pixels=t.pixels.double()) for k, t in batch.tiles.items()})
    (made,), _, _ = model.predict(batch, seeded())
    groups = ((0, 1, 2, 3), (4, 5), (6, 7))
    assert model.encoder.config.stem.groups(OPTICAL) == groups
    per_sample = []
    for b in range(12):
        errors = []
        for g, bands in enumerate(groups):
            target = patchify(made.given.pixels[b : b + 1, list(bands)], 2)[0].double()
            for n in range(64):
                if made.is_scored[b, 0, g].flatten()[n]:
                    wanted = (target[n] - target[n].mean()) / (target[n].var() + 1e-6).sqrt()
                    errors.append(float(((made.patches[g][b, n].double() - wanted) ** 2).mean()))
        per_sample.append(sum(errors) / len(errors))
    assert float(model(batch, seeded())["loss"].detach()) == pytest.approx(sum(per_sample) / 12, rel=1e-5)


def test_consistent_hides_places_independent_tokens(batch: Batch) -> None:
    shares = {}
    for masking in ("independent", "consistent"):
        config = SatmaeConfig(DECODER, positions=PositionConfig(group_width=4), masking=masking)  # type: ignore[arg-type]
        (given,) = Satmae(group_encoder(VIT, 20.0, (OPTICAL,), 8), config, seeded()).give(batch, seeded())
        whole = given.is_hidden[2:]  # the first samples have invalid ground
        assert float(whole.float().mean()) == pytest.approx(0.75, abs=0.01)
        shares[masking] = float((whole.all(2) == whole.any(2)).float().mean())
    assert shares["consistent"] == 1
    assert shares["independent"] < 0.6


def test_cubes_hide_nine_tenths_and_sums_are_compared_where_asked(batch: Batch) -> None:
    model = objectives()["s2mae"]
    terms = model(batch, seeded())
    assert float(terms["reconstruction"]) == pytest.approx(float(terms["mse/optical"] + terms["spectral_sum"]), rel=1e-5)
    (given,) = model.give(batch, seeded())
    assert given.is_hidden.shape == (12, 1, 3, 8, 8)
    assert given.is_hidden[3:].flatten(1).sum(1).eq(round(0.9 * 192)).all()
    with pytest.raises(InputError, match=r"cubes of \(1, 1\) tokens, expected three numbers"):
        S2maeConfig(DECODER, cube=(1, 1))


def test_dates_are_seen_together_or_apart(batch: Batch) -> None:
    """With frames together another date changes an embedding; apart it does not."""
    tiles = batch.tiles["radar"]
    changed = replace(tiles, pixels=tiles.pixels.clone())
    changed.pixels[:, 2] += 3
    for frames, is_changed in (("together", True), ("apart", False)):
        encoder = Encoder(replace(prithvi_encoder(VIT, 20.0, (RADAR,)), frames=frames), seeded())
        pooled = [encoder.encode(Batch({"radar": t}, batch.lonlat))["radar"].pooled[0, 0] for t in (tiles, changed)]
        assert torch.equal(*pooled) != is_changed


@pytest.mark.parametrize("is_known", [True, False])
def test_time_and_place_are_told(is_known: bool, batch: Batch) -> None:
    """Two sites that differ in time or place only: told apart by those systems that are told, if they are known."""
    for name, differs in (
        ("satmae_temporal", "time"),
        ("prithvi_v2", "time"),
        ("prithvi_v2", "place"),
        ("mae", ""),
        ("loom", "place"),
    ):
        encoder = Encoder(EncoderConfig(VIT, 20.0, BOTH), seeded()) if name == "mae" else objectives()[name].encoder
        tiles = batch.tiles["radar"]
        days, where = tiles.time_days.clone(), batch.lonlat.clone()
        days[1] += 100 if differs == "time" else 0
        where[1] += 20 if differs == "place" else 0
        if not is_known:
            days[:], where[:] = torch.nan, torch.nan
        same = replace(
            tiles, pixels=tiles.pixels[:1].expand(4, -1, -1, -1, -1), time_days=days, is_present=tiles.is_present[:1].expand(4, -1)
        )
        pooled = encoder.encode(Batch({"radar": same}, where))["radar"].pooled
        assert torch.equal(pooled[0], pooled[1]) != (bool(differs) and is_known), name


def test_positions_are_put_together_as_published() -> None:
    days = torch.tensor([[18_000.0, 18_100.0]], dtype=torch.float64)  # 2019-04-14 and 2019-07-23
    grid = TokenGrid(2, 3, 2, 4, days, torch.tensor([[8.5, 52.0]], dtype=torch.float64))
    time = satmae_time(12, torch.tensor([2019.0, 2019.0]), torch.tensor([4.0, 7.0]), torch.tensor([0.0, 0.0]))
    table = PositionEmbedding(PositionConfig(group_width=8, time_width=12), 32)(grid).view(2, 3, 8, 32)
    for t in range(2):
        for g in range(3):
            expected = [sincos_2d(12, 2, 4), sincos_1d(8, torch.tensor(float(g))).expand(8, -1), time[t].expand(8, -1)]
            torch.testing.assert_close(table[t, g], torch.cat(expected, -1))
    one = replace(grid, groups=1)
    told = PositionEmbedding(V2, 32)
    told.time.weight.data.fill_(1)  # type: ignore[union-attr]
    told.location.weight.data.fill_(2)  # type: ignore[union-attr]
    day = prithvi_time(32, torch.tensor([2019.0, 2019.0]), torch.tensor([103.0, 203.0]))
    expected_2 = sincos_3d(32, 2, 2, 4).view(2, 8, 32) + 0.1 * day[:, None] + 0.2 * lonlat(32, grid.lonlat_deg)[0]
    torch.testing.assert_close(told.eval()(one).view(2, 8, 32), expected_2)


def test_metadata_are_withheld_from_some_samples_in_training() -> None:
    table = PositionEmbedding(PositionConfig(has_location=True, metadata_drop=0.5), 16)
    table.location.weight.data.fill_(1)  # type: ignore[union-attr]
    where = torch.tensor([[8.5, 52.0]], dtype=torch.float64).expand(200, -1)
    grid = TokenGrid(1, 1, 1, 1, torch.zeros(200, 1, dtype=torch.float64), where)
    told = (table(grid, seeded()) != sincos_2d(16, 1, 1)).flatten(1).any(1)
    assert 70 < int(told.sum()) < 130
    assert (table.eval()(grid) != sincos_2d(16, 1, 1)).flatten(1).any(1).all()


def test_an_absent_sensor_is_a_hidden_one(make_batch: Make) -> None:
    """Loom makes the same of the optical tokens whether the radar is absent or hidden whole, and scores it only where it was."""
    batch = make_batch(*BOTH, num=2)
    model = objectives()["loom"].eval()
    drawn = model.hide([torch.ones(2, 1, 1, 8, 8, dtype=torch.bool)] * 2, seeded())
    hidden = [drawn[0], torch.ones_like(drawn[1])]
    model.hide = lambda seen, generator: hidden  # type: ignore[method-assign]
    absent = replace(batch.tiles["radar"], is_present=torch.zeros(2, 1, dtype=torch.bool))
    without = replace(batch, tiles={**batch.tiles, "radar": replace(absent, pixels=torch.full_like(absent.pixels, torch.nan))})
    (seen_optical, seen_radar), *_ = model.predict(batch, seeded())
    (absent_optical, absent_radar), *_ = model.predict(without, seeded())
    assert torch.equal(seen_optical.patches[0], absent_optical.patches[0])
    assert torch.equal(seen_radar.patches[0], absent_radar.patches[0])
    assert seen_radar.is_scored.all()
    assert not absent_radar.is_scored.any()
    assert float(model(without, seeded())["mse/radar"]) == 0


def test_one_sensor_is_hidden_whole_from_some_samples(make_batch: Make) -> None:
    batch = make_batch(*BOTH, num=64, size_m=80.0)
    for probability, low, high in ((0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)):
        model = Loom(loom_encoder(VIT, 20.0, BOTH), LoomConfig(DECODER, cross_sensor_probability=probability), seeded())
        whole = torch.stack([part.is_hidden.flatten(1).all(1) for part in model.give(batch, seeded())], 1)
        assert low <= int(whole.any(1).sum()) <= high
        assert not whole.all(1).any()


def test_sensors_of_a_site_are_to_find_each_other(make_batch: Make) -> None:
    """Each sensor is encoded as if alone; a sample that lacks one of them is in no pair."""
    batch, model = make_batch(*BOTH, num=6), objectives()["loom"].eval()
    assert isinstance(model, Loom)
    batch.tiles["radar"].is_present[2] = False
    model.hide = lambda seen, generator: [torch.arange(64).view(1, 1, 1, 8, 8).expand_as(part) % 2 == 0 for part in seen]  # type: ignore[method-assign]
    views = []
    for name in ("optical", "radar"):
        (given,) = model.give(replace(batch, tiles={name: batch.tiles[name]}), seeded())
        views.append(model.projector(model.pooled(model.encode([given], seeded()).parts[0])))
    both = torch.tensor([0, 1, 3, 4, 5])
    terms = model(batch, seeded())
    wanted = nt_xent(views[0][both], views[1][both], 0.1).detach()
    torch.testing.assert_close(terms["contrast/optical+radar"], wanted, rtol=1e-4, atol=1e-5)
    assert agreement(*views, torch.arange(6) == 1, 0.1).item() == 0


def test_in_training_one_sensor_of_a_site_is_told_time_and_place(batch: Batch) -> None:
    model = objectives()["loom"]
    assert isinstance(model, Loom)
    told = model._told(model.give(batch, seeded()), seeded(3))
    knows = torch.stack([part.grid.time_days.isfinite().all(1) & part.grid.lonlat_deg.isfinite().all(1) for part in told])
    assert (knows.sum(0) == 1).all()
    assert (knows.sum(1) > 0).all()


@pytest.mark.parametrize("name", ["mae", "loom"])
def test_what_is_not_asked_for_is_neither_decoded_nor_scored(name: str, batch: Batch) -> None:
    """Of the hidden tokens a share is asked for; what a sample is given does not depend on how many others ask for."""
    config = {"asked_share": 0.25, "normalise_patches": False}
    model: MaskedAutoencoder = (
        Loom(loom_encoder(VIT, 20.0, BOTH), LoomConfig(DECODER, **config), seeded())
        if name == "loom"
        else Mae(EncoderConfig(VIT, 20.0, BOTH, hidden="absent"), MaeConfig(DECODER, **config), seeded())
    )
    lengths: list[int] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    given = model.give(batch, seeded())
    encoded = model.encode(given, seeded())
    outputs, _ = model.decode(given, encoded, seeded())
    num_tokens = sum(part.grid.num_tokens for part in given)
    assert lengths[-1] < 0.7 * num_tokens
    for part, output in zip(given, outputs):
        is_dropped = part.is_dropped.flatten(1)
        assert not (part.is_dropped & ~part.is_hidden).any()
        assert 0.6 < float(is_dropped.sum() / part.is_hidden.sum()) < 0.9
        assert output[~is_dropped].any(-1).all()
        assert torch.equal(model.compare(part, output).is_scored, part.is_hidden & part.is_seen & ~part.is_dropped)
    alone = [replace(part, **{key: getattr(part, key)[:1] for key in ("is_seen", "is_hidden", "is_dropped")}) for part in given]
    one = replace(encoded, memory=encoded.memory[:1], prefix=encoded.prefix[:1])
    if name == "mae":
        apart, _ = model.decode(alone, one, seeded())
        is_kept = ~alone[0].is_dropped.flatten(1)
        torch.testing.assert_close(apart[0][is_kept], outputs[0][:1][is_kept])
    assert not any(part.is_dropped.any() for part in model.eval().give(batch, seeded()))


def test_samples_without_anything_to_score_do_not_count() -> None:
    error, is_scored = torch.tensor([[2.0, 4.0], [5.0, 5.0], [7.0, 9.0]]), torch.tensor([[1, 1], [0, 0], [1, 0]]).bool()
    assert mean_by_sample(error, is_scored) == (3.0 + 7.0) / 2
    assert mean_by_sample(error, torch.zeros_like(is_scored)) == 0


def test_loom_with_a_stem_per_sensor_needs_its_tokens(make_batch: Make) -> None:
    batch = make_batch(*BOTH)
    with pytest.raises(InputError, match="set the stem's has_tokens"):
        Loom(loom_encoder(VIT, 20.0, BOTH, SensorStemConfig()), LoomConfig(DECODER), seeded())(batch, seeded())
    model = Loom(loom_encoder(VIT, 20.0, BOTH, SensorStemConfig(has_tokens=True)), LoomConfig(DECODER), seeded())
    assert model(batch, seeded())["loss"].isfinite()


@pytest.mark.parametrize("name", ["satmae_group", "loom", "prithvi_v2"])
def test_it_learns(name: str, make_batch: Make) -> None:
    """A ramp over the site, at another level on every step."""
    model = objectives()[name]
    batch = make_batch(*BOTH, num=8)
    ramp = torch.linspace(-1, 1, 16)
    for spec in BOTH:
        batch.tiles[spec.name].pixels[:] = (ramp[:, None] + ramp) * 2 * spec.std[0] + spec.mean[0]
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    losses = []
    for step in range(50):
        loss = model(batch, seeded(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])


S2_BANDS = ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")


def published_rgb(num: int, names: tuple[str, ...] = ()) -> SensorSpec:
    names = names or tuple(f"b{i}" for i in range(num))
    return SensorSpec("it", "passive", "digital_number", "1", 1.0, names, (500.0,) * num, (0.0,) * num, (1.0,) * num)


def transformer(width: int, depth: int) -> int:
    """Weights of pre-norm blocks of a published ViT, with the last norm."""
    return depth * (12 * width**2 + 13 * width) + 2 * width


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # Encoder with class token; decoder 8 x 512 with its entry and mask token; stems and heads per group: public code.
        (
            "satmae_group_large",
            transformer(1024, 24) + 1024 + 10 * 64 * 1024 + 3 * 1024 + 1024 * 512 + 512 + 512 + transformer(512, 8) + 10 * 64 * 513,
        ),
        ("satmae_temporal_large", 329_541_888 - 197 * (1024 + 512)),
        (
            "prithvi_100m",
            transformer(768, 12) + 768 + 6 * 256 * 768 + 768 + 768 * 512 + 512 + 512 + transformer(512, 8) + 6 * 256 * 513,
        ),
    ],
)
def test_published_sizes(name: str, published: int) -> None:
    """By the layers of the public code, without its fixed tables of positions.

    Prithvi 100M is named after its encoder of 86 M and its decoder of 27 M together.
    """
    decoder = VitConfig(512, 8, 16, has_class_token=False)
    with torch.device("meta"):
        if name == "satmae_group_large":
            encoder = group_encoder(vit_size("large"), 8.0, (published_rgb(10, S2_BANDS),))
            model: MaskedAutoencoder = Satmae(encoder, SatmaeConfig(decoder, positions=PositionConfig(group_width=128)))
        elif name == "satmae_temporal_large":
            encoder = temporal_encoder(vit_size("large"), 16.0, (published_rgb(3),))
            model = Satmae(encoder, SatmaeConfig(decoder, positions=PositionConfig(time_width=192)))
        else:
            encoder = prithvi_encoder(vit_size("base"), 16.0, (published_rgb(6),))
            model = Prithvi(encoder, PrithviConfig(decoder))
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize(("size", "millions"), [("base", 111.0), ("large", 337.0)])
def test_dofa_sizes(size: str, millions: float) -> None:
    """The encoders that were published have 111 M and 337 M parameters, most of what is beyond the ViT's in the generator."""
    with torch.device("meta"):
        encoder = Encoder(dofa_encoder(vit_size(size), 16.0, (published_rgb(3),)))
    assert encoder.num_parameters / 1e6 == pytest.approx(millions, rel=0.005)


def test_dofa_is_drawn_to_a_teacher_that_sees_everything(batch: Batch) -> None:
    model = objectives()["dofa_taught"].eval()
    assert isinstance(model, TaughtDofa)
    assert not [key for key, _ in model.named_parameters() if "teacher" in key and "to_teacher" not in key]
    batch.tiles["optical"].is_present[2, 1] = False
    terms = model(batch, seeded())
    _, encoded, _ = model.predict(batch, seeded())
    seen = [tokens[is_key].mean(0) for tokens, is_key in zip(encoded.maps[-1], encoded.is_key)]
    wanted = model.teacher.pooled(batch.tiles["optical"], "optical")[0]
    cosines = [
        torch.cosine_similarity(model.to_teacher(own), other, dim=0)
        for own, other, is_present in zip(seen, wanted, batch.tiles["optical"].is_present.flatten())
        if is_present
    ]
    torch.testing.assert_close(terms["teacher"], -torch.stack(cosines).mean())
    torch.testing.assert_close(terms["loss"], terms["mse/optical"] + terms["teacher"])


def test_mae_takes_dates_as_samples(batch: Batch) -> None:
    model = Mae(EncoderConfig(VIT, 20.0, BOTH, hidden="absent"), MaeConfig(DECODER), seeded())
    (made,), *_ = model.predict(batch, seeded())
    assert made.is_scored.shape == (12, 1, 1, 8, 8)
