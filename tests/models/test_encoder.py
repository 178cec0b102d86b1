import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from models import Batch, Encoder, Tiles
from models.encoder import EncoderConfig
from models.errors import InputError
from models.sensor import SensorSpec

Make = Callable[..., Batch]
MakeConfig = Callable[..., EncoderConfig]
Specs = dict[str, SensorSpec]


def lively(config: EncoderConfig, generator: torch.Generator) -> Encoder:
    """An encoder whose parameters are large enough that every path shows."""
    encoder = Encoder(config, generator)
    for parameter in encoder.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return encoder


def with_tiles(batch: Batch, name: str, **changes: object) -> Batch:
    return replace(batch, tiles={**batch.tiles, name: replace(batch.tiles[name], **changes)})


@pytest.fixture
def encoder(make_config: MakeConfig, generator: torch.Generator) -> Encoder:
    return lively(make_config(num_experts=4), generator)


def test_embedding_shapes(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["optical"], specs["dsm"], num=3, times=2)
    embedding = encoder.encode(batch)
    assert list(embedding) == ["optical", "dsm"]
    for part in embedding.values():  # 160 m = 8 tokens of 20 m = 4 cells, whatever the pixel size
        assert part.pooled.shape == (3, 2, 16)
        assert part.grid.shape == (3, 2, 4, 4, 16)
        assert part.is_valid.shape == (3, 2, 4, 4)
        assert part.pooled.dtype == part.grid.dtype == torch.float32
        torch.testing.assert_close(part.pooled, part.grid.mean((2, 3)))
    assert len(batch) == 3


def test_stages_can_be_pooled(make_config: MakeConfig, make_batch: Make, specs: Specs, generator: torch.Generator) -> None:
    config = replace(make_config(), pool="stages")
    encoder = lively(config, generator)
    batch = make_batch(specs["radar"])
    pooled = encoder.encode(batch)["radar"].pooled
    assert config.pooled_width == pooled.shape[-1] == 8 + 16
    last = lively(make_config(), torch.Generator().manual_seed(7)).encode(batch)["radar"].pooled
    torch.testing.assert_close(pooled[..., 8:], last)


def test_moments_are_means_and_deviations_of_valid_ground(
    make_config: MakeConfig, make_batch: Make, specs: Specs, generator: torch.Generator
) -> None:
    config = replace(make_config(), pool="moments")
    encoder, batch = lively(config, generator), make_batch(specs["radar"])
    tiles = batch.tiles["radar"]
    tiles.is_valid[0, :, :, : tiles.is_valid.shape[-1] // 2] = False
    seen = Batch({"radar": replace(tiles, pixels=tiles.pixels.where(tiles.is_valid[:, :, None], torch.nan))}, batch.lonlat)
    pooled = encoder.encode(seen)["radar"].pooled.flatten(0, 1)
    features, is_valid = encoder.eval().examined(seen.tiles["radar"], "radar", seen.lonlat)
    assert not is_valid[0].all()
    first, last = (m.detach() for m in (F.layer_norm(features.maps[0], features.maps[0].shape[-1:]), features.maps[-1]))
    finer = is_valid.repeat_interleave(2, 1).repeat_interleave(2, 2)
    parts = [[m[v] for m, v in zip(found, valid)] for found, valid in ((first, finer), (last, is_valid))]
    means = [torch.stack([m.mean(0) for m in part]) for part in parts]
    spreads = [torch.stack([m.std(0, correction=0) for m in part]) for part in parts]
    assert config.pooled_width == pooled.shape[-1] == 2 * (8 + 16)
    torch.testing.assert_close(pooled, torch.cat([*means, *spreads], -1), atol=2e-3, rtol=1e-3)


def test_encode_follows_a_permuted_batch(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    """Experts drop nothing in evaluation, so neighbours in a batch do not matter; training mode is left as it was."""
    batch = make_batch(specs["optical"], num=6)
    tiles, order = batch.tiles["optical"], torch.tensor([3, 0, 5])
    part = replace(tiles, **{n: getattr(tiles, n)[order] for n in ("pixels", "is_valid", "is_present", "time_days")})
    whole = encoder.train().encode(batch)["optical"]
    some = encoder.encode(Batch({"optical": part}, batch.lonlat[order]))["optical"]
    torch.testing.assert_close(some.pooled, whole.pooled[order])
    torch.testing.assert_close(some.grid, whole.grid[order])
    assert encoder.training


def test_absent_equals_wholly_invalid_and_holds_no_pixel(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["optical"])
    is_present = torch.tensor([[True], [False], [True], [True]])
    is_valid = batch.tiles["optical"].is_valid & is_present[..., None, None]
    nan = batch.tiles["optical"].pixels.clone()
    nan[1] = torch.nan
    absent = encoder.encode(with_tiles(batch, "optical", is_present=is_present, pixels=nan))["optical"]
    invalid = encoder.encode(with_tiles(batch, "optical", is_valid=is_valid))["optical"]
    whole = encoder.encode(batch)["optical"]
    assert torch.equal(absent.grid, invalid.grid)
    assert torch.equal(absent.pooled, invalid.pooled)
    assert not absent.is_valid[1].any()
    assert absent.is_valid[[0, 2, 3]].all()
    torch.testing.assert_close(absent.grid[[0, 2, 3]], whole.grid[[0, 2, 3]])
    masked = encoder.eval().features(torch.zeros(1, 2, 16, 16), torch.ones(1, 16, 16).bool(), "optical", torch.ones(1, 8, 8).bool())
    torch.testing.assert_close(masked.maps[-1][0], absent.grid[1, 0])


def test_invalid_pixels_do_not_matter(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["optical"])
    tiles = batch.tiles["optical"]
    is_valid = torch.rand(tiles.is_valid.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    is_valid[0, 0, :, :8] = False  # half of the cells of the first sample
    embeddings = []
    for filler in (0.0, torch.nan):
        pixels = tiles.pixels.masked_fill(~is_valid[:, :, None], filler)
        embeddings.append(encoder.encode(with_tiles(batch, "optical", pixels=pixels, is_valid=is_valid))["optical"])
    assert torch.equal(embeddings[0].grid, embeddings[1].grid)
    assert not torch.equal(embeddings[0].grid, encoder.encode(batch)["optical"].grid)
    first = embeddings[0]
    assert first.is_valid[0, 0].float().mean(0).tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(first.pooled[0, 0], first.grid[0, 0][:, 2:].mean((0, 1)))


def test_heights_count_from_the_mean_of_their_tile(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["dsm"])
    pixels = batch.tiles["dsm"].pixels
    lifted = with_tiles(batch, "dsm", pixels=pixels + torch.tensor([0.0, 500, -300, 2000]).view(4, 1, 1, 1, 1))
    torch.testing.assert_close(encoder.encode(batch)["dsm"].grid, encoder.encode(lifted)["dsm"].grid, atol=1e-3, rtol=1e-3)
    steeper = with_tiles(batch, "dsm", pixels=pixels * 1.5)
    assert not torch.allclose(encoder.encode(batch)["dsm"].grid, encoder.encode(steeper)["dsm"].grid, atol=1e-2)


def test_normalises_by_hand(encoder: Encoder, specs: Specs) -> None:
    spec = specs["dsm"]  # std 8
    pixels = torch.tensor([[[[100.0, 108], [116, torch.nan]]]])
    is_valid = torch.tensor([[[True, True], [True, False]]])
    level = spec.level(pixels, is_valid)
    assert level.flatten().tolist() == [108]
    assert spec.normalise(pixels, is_valid, level).tolist() == [[[[-1, 0], [1, 0]]]]
    hidden = torch.tensor([[[True, False], [False, False]]])
    assert spec.level(pixels, is_valid, hidden).flatten().tolist() == [112]
    assert spec.level(pixels, is_valid, torch.ones_like(hidden)).flatten().tolist() == [108]
    optical = specs["optical"]  # mean .1 .3, std .05 .1
    pixels = torch.tensor([0.2, 0.1]).view(1, 2, 1, 1)
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool)
    level = optical.level(pixels, everywhere)
    normalised = optical.normalise(pixels, everywhere, level)
    torch.testing.assert_close(normalised.flatten(), torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(optical.denormalise(normalised, level), pixels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": ("nir", "red")}, r"bands nir, red, expected red, nir \(the same bands in another order\)"),
        ({"bands": ("red", "swir")}, r"bands red, swir, expected red, nir \(other bands\)"),
        ({"unit": "DN"}, r"unit 'DN', expected '1'; convert"),
        ({"gsd_m": 20.0}, r"pixels of 20 m, expected 10 m"),
        ({"pixels": torch.zeros(4, 1, 2, 15, 16)}, r"shape \(4, 1, 2, 15, 16\), expected .* multiples of 2"),
        ({"is_present": torch.ones(4, 2).bool()}, r"is_present of shape \(4, 2\), expected \(4, 1\)"),
        ({"pixels": torch.full((4, 1, 2, 16, 16), 1000.0)}, r"band red of sensor 'optical' lies 2e\+04 std"),
        ({"pixels": torch.full((4, 1, 2, 16, 16), torch.nan)}, r"mark missing ones in is_valid"),
    ],
)
def test_refuses_tiles_unlike_training(
    encoder: Encoder, make_batch: Make, specs: Specs, changes: dict[str, object], message: str
) -> None:
    batch = with_tiles(make_batch(specs["optical"]), "optical", **changes)
    with pytest.raises(InputError, match=message):
        encoder.encode(batch)


def test_refuses_rescaled_units(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(specs["optical"])
    counts = with_tiles(batch, "optical", pixels=batch.tiles["optical"].pixels * 10_000)
    with pytest.raises(InputError, match="expected less than 50"):
        encoder.encode(counts)
    faint = with_tiles(batch, "optical", pixels=batch.tiles["optical"].pixels / 10_000)
    with pytest.raises(InputError, match=r"all bands of sensor 'optical' vary less than 0\.01 std"):
        encoder.encode(faint)
    encoder.encode(with_tiles(batch, "optical", pixels=torch.full_like(batch.tiles["optical"].pixels, 0.1)))


def test_refuses_unknown_sensor(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(replace(specs["optical"], name="optcal"))
    with pytest.raises(InputError, match=r"'optcal' is unknown .*optical, radar.*did you mean 'optical'\?"):
        encoder.encode(batch)


def test_refuses_a_token_of_broken_pixels(make_config: MakeConfig, specs: Specs) -> None:
    with pytest.raises(InputError, match=r"token of 20 m is 6\.66667 pixels of sensor 'odd' \(3 m\)"):
        make_config(replace(specs["radar"], name="odd", gsd_m=3.0))


def test_refuses_statistics_of_other_length(specs: Specs) -> None:
    with pytest.raises(InputError, match="sensor 'optical' has 1 std, expected 2, one per band"):
        replace(specs["optical"], std=(1.0,))


def test_save_and_load(encoder: Encoder, make_batch: Make, specs: Specs, tmp_path: Path) -> None:
    encoder.save(tmp_path / "model", extra={"recipe": "test"})
    loaded = Encoder.load(tmp_path / "model")
    assert loaded.config == encoder.config
    assert not loaded.training
    state, again = encoder.state_dict(), loaded.state_dict()
    assert list(state) == list(again)
    assert all(torch.equal(state[name], again[name]) for name in state)
    batch = make_batch(specs["aerial"])
    assert torch.equal(encoder.encode(batch)["aerial"].pooled, loaded.encode(batch)["aerial"].pooled)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["extra"] == {"recipe": "test"}


def test_saved_weights_are_float32(encoder: Encoder, tmp_path: Path) -> None:
    encoder.to(torch.bfloat16).save(tmp_path)
    assert {p.dtype for p in Encoder.load(tmp_path).parameters()} == {torch.float32}


def test_load_says_what_is_wrong(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json is missing"):
        Encoder.load(tmp_path)
    encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def load_with(**changes: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        Encoder.load(tmp_path)

    with pytest.raises(InputError, match=r"format 'terraloom-encoder' version 9, expected .* version 3"):
        load_with(version=9)
    wider = {**config["encoder"], "backbone": {**config["encoder"]["backbone"], "embed_dim": 16}}
    with pytest.raises(InputError, match=r"is not the model of its config\.json"):
        load_with(encoder=wider)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"is not the model of its config\.json"):
        load_with()
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"is not the model of its config\.json"):
        load_with()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_with()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Encoder.load(tmp_path)


def test_config_round_trip_and_unknown_keys(encoder: Encoder) -> None:
    content = json.loads(json.dumps(encoder.config.to_dict()))
    assert EncoderConfig.from_dict(content) == encoder.config
    with pytest.raises(InputError, match=r"encoder\.backbone has unknown key 'num_head' .*did you mean 'num_heads'\?"):
        EncoderConfig.from_dict({**content, "backbone": {**content["backbone"], "num_head": 2}})
    with pytest.raises(InputError, match="encoder lacks token_size_m"):
        EncoderConfig.from_dict({key: content[key] for key in ("backbone", "sensors")})
    with pytest.raises(InputError, match=r"encoder\.pool is 'max', expected one of 'last', 'stages'"):
        EncoderConfig.from_dict({**content, "pool": "max"})
    with pytest.raises(InputError, match=r"encoder\.backbone\.window is '4', expected int"):
        EncoderConfig.from_dict({**content, "backbone": {**content["backbone"], "window": "4"}})


def test_same_generator_same_weights(make_config: MakeConfig) -> None:
    first, second, third = (Encoder(make_config(), torch.Generator().manual_seed(s)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_active_parameters(make_config: MakeConfig) -> None:
    dense, sparse = Encoder(make_config()), Encoder(make_config(num_experts=4))
    router, expert = 4 * 16, 16 * 64 + 64 + 64 * 16 + 16
    assert dense.num_active_parameters == dense.num_parameters
    assert sparse.num_parameters == dense.num_parameters + 3 * expert + router
    assert sparse.num_active_parameters == dense.num_parameters + router


def test_bfloat16_is_close(encoder: Encoder, make_batch: Make, specs: Specs) -> None:
    batch = make_batch(*specs.values())
    exact = encoder.encode(batch)
    rough = encoder.to(torch.bfloat16).encode(batch)
    for name in exact:
        assert torch.nn.functional.cosine_similarity(exact[name].pooled, rough[name].pooled, dim=-1).min() > 0.98


def test_batch_moves(make_batch: Make, specs: Specs) -> None:
    moved = make_batch(specs["radar"], index=5).to("meta")
    assert moved.index == 5
    assert moved.lonlat.device.type == moved.tiles["radar"].pixels.device.type == "meta"
    assert isinstance(moved.tiles["radar"], Tiles)
    assert moved.tiles["radar"].bands == ("VV",)
