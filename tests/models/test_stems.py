from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.batch import Batch
from models.config import from_dict, to_dict
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.objectives.dofa import dofa_encoder
from models.objectives.loom import loom_encoder
from models.patches import patchify
from models.sensor import SensorSpec
from models.stems import load
from models.stems.band_groups import BandGroupStemConfig
from models.stems.cubes import CubeStemConfig
from models.stems.dofa import NUM_WEIGHT_TOKENS, DofaStemConfig, WeightGenerator
from models.stems.generated import resize
from models.stems.sensor import SensorStemConfig
from models.stems.spectral import FACTS, NUM_FACTS, SpectralStemConfig, describe
from models.stems.stem import Stem, StemConfig
from models.vit import VitConfig

Make = Callable[..., Batch]
VIT = VitConfig(embed_dim=16, depth=2, num_heads=2)
SENTINEL1 = SensorSpec(
    "s1", "active", "sigma0", "dB", 10.0, ("VV", "VH"), (None, None), (-12.0, -18.0), (4.0, 4.0), (), (5.405, 5.405), ("VV", "VH")
)
SENTINEL2 = SensorSpec(
    "s2",
    "passive",
    "surface_reflectance",
    "1",
    10.0,
    ("B01", "B02", "B03", "B04", "B05", "B08", "B11"),
    (443.0, 492.0, 560.0, 665.0, 704.0, 833.0, 1610.0),
    (0.1,) * 7,
    (0.05,) * 7,
    (20.0, 66.0, 36.0, 31.0, 15.0, 106.0, 90.0),
)
DSM = SensorSpec("dsm", "active", "height", "m", 5.0, ("height",), (None,), (400.0,), (8.0,))
PIXELS = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(config: StemConfig, *sensors: SensorSpec) -> Stem:
    stem = config.build(sensors, 20.0, 16)
    initialise(stem, seeded())
    return stem


def test_groups_of_bands_are_tokens_of_a_place() -> None:
    """B01 is in no group and not seen; B05 stands alone in its group; a sensor of other bands is one group."""
    config = BandGroupStemConfig()
    assert config.groups(SENTINEL2) == ((1, 2, 3, 5), (4,), (6,))
    assert config.groups(SENTINEL1) == ((0, 1),)
    stem = built(config, SENTINEL2, SENTINEL1)
    pixels = torch.randn(2, 7, 8, 8, generator=seeded())
    tokens = stem(pixels, SENTINEL2)
    assert tokens.shape == (2, 3, 4, 4, 16)
    changed = pixels.clone()
    changed[:, 0] += 1
    assert torch.equal(stem(changed, SENTINEL2), tokens)
    changed[:, 4] += 1
    is_other = (stem(changed, SENTINEL2) != tokens).flatten(2).any(-1).all(0)
    assert is_other.tolist() == [False, True, False]


def test_cubes_share_a_projection_and_the_last_may_be_thin() -> None:
    config = CubeStemConfig(bands_per_cube=3)
    assert config.groups(SENTINEL2) == ((0, 1, 2), (3, 4, 5), (6,))
    stem = built(config, SENTINEL2)
    block = torch.randn(2, 3, 8, 8, generator=seeded())
    pixels = torch.cat([block, block, block[:, :1]], 1)
    tokens = stem(pixels, SENTINEL2)
    assert torch.equal(tokens[:, 0], tokens[:, 1])
    alone = stem(torch.cat([block, block, torch.zeros(2, 1, 8, 8)], 1), SENTINEL2)
    assert torch.equal(alone[:, :2], tokens[:, :2])
    head = config.build_head((SENTINEL2,), 20.0, 16)
    initialise(head, seeded())
    made = head(tokens.flatten(2, 3), SENTINEL2)
    assert [tuple(part.shape) for part in made] == [(2, 16, 12), (2, 16, 12), (2, 16, 4)]
    # Of each pixel's three bands the thin cube keeps the first.
    whole = head.projections["s2"][0](tokens[:, 2].flatten(1, 2))  # type: ignore[index, union-attr, operator]
    assert torch.equal(made[2], whole[..., ::3])


@pytest.mark.parametrize("make", [dofa_encoder, loom_encoder])
def test_vv_and_vh_are_told_apart_by_polarisation_only(make: Callable[..., EncoderConfig]) -> None:
    """With the published DOFA stem a token depends on VV + VH alone and both are predicted alike; with ours neither."""
    config = make(VIT, 20.0, (SENTINEL1, SENTINEL2))
    encoder = Encoder(config, seeded())
    head = config.stem.build_head(config.sensors, 20.0, 16)
    initialise(head, seeded())
    is_blind = isinstance(config.stem, DofaStemConfig)
    same_sum = PIXELS.mean(1, keepdim=True).expand(-1, 2, -1, -1)
    tokens = encoder.stem(PIXELS, SENTINEL1)
    is_alike = [torch.allclose(encoder.stem(other, SENTINEL1), tokens, atol=1e-4) for other in (PIXELS.flip(1), same_sum)]
    assert is_alike == [is_blind, is_blind]
    (made,) = head(tokens.flatten(2, 3), SENTINEL1)
    assert torch.allclose(made[..., 0::2], made[..., 1::2], atol=1e-4) == is_blind


def test_sensing_quantity_and_pixel_size_are_told_apart() -> None:
    """Bands that agree in all but one fact have other kernels, and the same ones once that fact is left out."""
    one = SensorSpec("one", "passive", "surface_reflectance", "1", 10.0, ("a",), (900.0,), (0.0,), (1.0,), (50.0,), (), (None,))
    others = {
        "sensing": replace(one, sensing="active"),
        "quantity": replace(one, quantity="height"),
        "gsd": replace(one, gsd_m=20.0),
        "bandwidth": replace(one, bandwidth_nm=(200.0,)),
        "wavelength": replace(one, wavelength_nm=(940.0,)),
        "polarisation": replace(one, polarisation=("VH",)),
    }
    assert set(others) == set(FACTS)
    for fact, other in others.items():
        for facts, is_same in ((FACTS, False), (tuple(f for f in FACTS if f != fact), True)):
            stem = built(SpectralStemConfig(facts=facts), one)
            kernels = [stem.kernels(spec).weight for spec in (one, other)]  # type: ignore[operator]
            assert torch.equal(*kernels) == is_same, (fact, facts)


def test_radar_wavelength_is_that_of_its_frequency() -> None:
    """5.405 GHz is 5.55 cm."""
    by_wavelength = replace(SENTINEL1, frequency_ghz=(None, None), wavelength_nm=(5.5466e7, 5.5466e7))
    torch.testing.assert_close(describe(SENTINEL1), describe(by_wavelength), atol=2e-3, rtol=0)
    assert describe(SENTINEL1).shape == (2, NUM_FACTS)


def test_bands_may_come_in_any_order_and_number() -> None:
    """Our stem on permuted bands with their metadata is the same; on fewer bands it is the sum of theirs."""
    stem = built(SpectralStemConfig(), SENTINEL2).double()
    pixels = torch.randn(2, 7, 8, 8, generator=seeded()).double()
    order = [3, 6, 0, 1, 5, 4, 2]
    permuted = SENTINEL2.select([SENTINEL2.bands[i] for i in order])
    torch.testing.assert_close(stem(pixels[:, order], permuted), stem(pixels, SENTINEL2), atol=1e-5, rtol=1e-5)
    kernels = stem.kernels(SENTINEL2).weight  # type: ignore[operator]
    torch.testing.assert_close(stem.kernels(SENTINEL2.select(["B04"])).weight[0], kernels[3])  # type: ignore[operator]


def test_kernels_are_functions_over_the_ground() -> None:
    """An even image gives the same token at any pixel size, if the pixel size is no part of the description."""
    facts = tuple(fact for fact in FACTS if fact != "gsd")
    stem = built(SpectralStemConfig(facts=facts), DSM)
    tokens = [stem(torch.full((1, 1, n, n), 0.7), replace(DSM, gsd_m=40.0 / n)) for n in (2, 4, 16, 32)]
    for other in tokens[1:]:
        torch.testing.assert_close(other, tokens[0], atol=1e-5, rtol=1e-5)
    kernel = torch.randn(4, 1, 8, 8, generator=seeded())
    assert torch.equal(resize(kernel, 8), kernel)
    torch.testing.assert_close(resize(kernel, 2)[..., 0, 0], kernel[..., :4, :4].mean((-2, -1)))


def test_the_published_generator_is_a_post_norm_transformer_layer() -> None:
    """Beside torch's own layer with the same weights."""
    generator = WeightGenerator(128, 12, 5)
    initialise(generator, seeded())
    oracle = nn.TransformerEncoderLayer(128, 4, 2048, 0.0, "gelu")
    names = {
        "self_attn.in_proj_weight": generator.qkv.weight,
        "self_attn.in_proj_bias": generator.qkv.bias,
        "self_attn.out_proj.weight": generator.project.weight,
        "self_attn.out_proj.bias": generator.project.bias,
        "linear1.weight": generator.expand.weight,
        "linear1.bias": generator.expand.bias,
        "linear2.weight": generator.contract.weight,
        "linear2.bias": generator.contract.bias,
        "norm1.weight": generator.norm_attention.weight,
        "norm1.bias": generator.norm_attention.bias,
        "norm2.weight": generator.norm_mlp.weight,
        "norm2.bias": generator.norm_mlp.bias,
    }
    oracle.load_state_dict({name: value.detach() for name, value in names.items()})
    codes = torch.randn(3, 128, generator=seeded())
    out = oracle(torch.cat([generator.weight_tokens, codes, generator.bias_token])[:, None])[:, 0]
    weights, bias = generator(codes)
    torch.testing.assert_close(weights, 0.01 * generator.to_weights(out[NUM_WEIGHT_TOKENS:-1] + codes), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(bias, 0.01 * generator.to_bias(out[-1]), atol=1e-6, rtol=1e-4)  # type: ignore[misc]


def test_a_sensor_that_was_never_seen(make_batch: Make) -> None:
    """With a description our encoder takes it; one with a stem per sensor says why not."""
    landsat = SensorSpec("oli", "passive", "toa_reflectance", "1", 5.0, ("green", "swir"), (562.0, 1609.0), (0.1, 0.2), (0.1, 0.1))
    encoder = Encoder(loom_encoder(VIT, 20.0, (SENTINEL1, SENTINEL2)), seeded())
    other = encoder.extended(landsat)
    batch = make_batch(landsat, SENTINEL2)
    found = other.encode(batch)
    assert found["oli"].pooled.shape == found["s2"].pooled.shape
    assert found["oli"].pooled.std(0).min() > 0
    assert torch.equal(found["s2"].pooled, encoder.encode(Batch({"s2": batch.tiles["s2"]}, batch.lonlat))["s2"].pooled)
    assert other.config.sensors[-1] == landsat
    assert next(other.parameters()) is next(encoder.parameters())
    few = encoder.extended(SENTINEL2.select(["B04", "B03"]))
    assert few.encode(make_batch(few.spec("s2")))["s2"].pooled.isfinite().all()
    with pytest.raises(InputError, match="measures 'humidity', which a spectral stem was not made for"):
        encoder.extended(replace(landsat, quantity="humidity"))
    fixed = Encoder(EncoderConfig(VIT, 20.0, (SENTINEL2,), hidden="absent"), seeded())
    with pytest.raises(InputError, match="sensor 'oli' has no stem in this encoder"):
        fixed.extended(landsat)
    with pytest.raises(InputError, match="serves the bands it was trained on"):
        fixed.extended(SENTINEL2.select(["B04"]))


def test_heads_put_pixels_where_patchify_finds_them() -> None:
    """A head that copies its token: pixels row by row, bands last."""
    head = SensorStemConfig().build_head((SENTINEL1,), 20.0, 8)
    linear = head.projections["s1"][0]  # type: ignore[index, union-attr]
    linear.weight.data, linear.bias.data = torch.eye(8), torch.zeros(8)  # type: ignore[union-attr]
    patches = patchify(PIXELS, 2)
    assert torch.equal(head(patches[:, None], SENTINEL1)[0], patches)


@pytest.mark.parametrize(
    "stem",
    [SensorStemConfig(), SensorStemConfig(has_norm=False), BandGroupStemConfig(), SpectralStemConfig()],
    ids=lambda s: s.kind,
)
def test_some_tokens_are_those_of_all(stem: StemConfig) -> None:
    """Of two tiles of 3 x 4 tokens, in any order and more than once, and the same gradient of the weights."""
    encoder = Encoder(EncoderConfig(VIT, 20.0, (SENTINEL2,), hidden="absent", stem=stem), seeded())
    pixels = torch.randn(2, SENTINEL2.num_bands, 6, 8, generator=seeded())
    tokens, grid = encoder.tokens(pixels, SENTINEL2)
    index = torch.randint(grid.num_tokens, (2, 5), generator=seeded())
    some = encoder.some_tokens(pixels, SENTINEL2, grid, index)
    chosen = torch.stack([part[places] for part, places in zip(tokens, index)])
    torch.testing.assert_close(some, chosen, atol=1e-5, rtol=1e-5)
    weights = list(encoder.stem.parameters())
    gradients = [torch.autograd.grad(part.sin().sum(), weights, allow_unused=True) for part in (some, chosen)]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_stems_are_found_by_kind_in_a_saved_configuration(tmp_path) -> None:  # type: ignore[no-untyped-def]
    load()
    for stem in (BandGroupStemConfig(), CubeStemConfig(bands_per_cube=2), DofaStemConfig(kernel_px=4), SpectralStemConfig()):
        encoder = Encoder(EncoderConfig(VIT, 20.0, (SENTINEL2,), hidden="absent", stem=stem), seeded())
        encoder.save(tmp_path / stem.kind)
        again = Encoder.load(tmp_path / stem.kind)
        assert again.config == encoder.config
        assert from_dict(EncoderConfig, to_dict(again.config)) == again.config
    content = to_dict(encoder.config)
    with pytest.raises(InputError, match=r"stem.kind is 'cube', expected one of 'sensor'"):
        EncoderConfig.from_dict({**content, "stem": {"kind": "cube"}})
