"""Recipes of SimMIM, RingMo, GFM, Scale-MAE and msGFM: sizes as published, and where GFM's teacher comes from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.recipes import load_recipe
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError as ModelInputError
from models.moe import MixtureOfExperts
from models.sensor import SensorSpec
from models.swin import SwinConfig
from pipeline.errors import InputError

RGB = SensorSpec("rgb", "passive", "digital_number", "1", 10.0, ("r", "g", "b"), (1.0, 2.0, 3.0), (0.0,) * 3, (1.0,) * 3)


def parameters(name: str) -> int:
    with torch.device("meta"):
        model = load_recipe("pretrain", name).build((RGB,), None)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "published"), [("simmim_swin_base", 89_874_104), ("scale_mae_large", 322_930_438)])
def test_published_sizes(name: str, published: int) -> None:
    """Scale-MAE's 322.9 M count two fixed tables of 197 positions and a second mask token, which nothing reads."""
    extra = 197 * (1024 + 512) + 512 if name == "scale_mae_large" else 0
    assert parameters(name) + extra == published


def test_msgfm_has_experts_in_nine_blocks() -> None:
    """Every other block of the third stage; seven more networks of 512 to 2048 and back in each, and a router."""
    with torch.device("meta"):
        model = load_recipe("pretrain", "msgfm_base").build((RGB,), None)
    mixtures = [part for part in model.modules() if isinstance(part, MixtureOfExperts)]
    assert (len(mixtures), {part.config.num_experts for part in mixtures}) == (9, {8})
    more = 9 * (7 * (2 * 512 * 2048 + 512 + 2048) + 8 * 512)
    assert sum(p.numel() for p in model.parameters()) == 89_874_104 + more


def test_published_schedules() -> None:
    """Batch, rate, steps: 800 epochs of 2048 ImageNet images at 1e-4 for 512; 100 epochs of 1024 at 2e-4."""
    train = load_recipe("pretrain", "simmim_swin_base").train
    assert (train.batch_size * train.lanes, train.num_steps) == (2048, 800 * (1_281_167 // 2048))
    assert train.optimiser.learning_rate == pytest.approx(4e-4)
    assert (train.optimiser.betas, train.optimiser.clip_norm) == ((0.9, 0.999), 5.0)
    per_epoch = 1_281_167 // 2048
    rates = [train.optimiser.rate(epoch * per_epoch, train.num_steps) for epoch in (5, 10, 699, 701, 799)]
    assert rates == pytest.approx([2e-4, 4e-4, 4e-4, 4e-5, 4e-5], rel=1e-3)
    train = load_recipe("pretrain", "gfm_swin_base").train
    assert (train.batch_size * train.lanes, train.num_steps) == (1024, 100 * (600_000 // 1024))
    assert train.optimiser.learning_rate == pytest.approx(4e-4)


def test_gfm_finds_its_teacher_in_a_run_or_a_model_folder(tmp_path: Path) -> None:
    recipe = load_recipe("pretrain", "gfm_tiny")
    swin = SwinConfig(embed_dim=8, depths=(1, 1), num_heads=(2, 2), window=4)
    Encoder(EncoderConfig(swin, 40.0, (RGB,))).save(tmp_path / "run" / "model")
    for given in ("run", "run/model"):
        located = replace(recipe, teacher=str(tmp_path / given)).located()
        assert located.teacher == str(tmp_path / "run" / "model")
    assert located.build((RGB,), torch.Generator()).head.out_features == 16
    with torch.device("meta"):
        located.build((RGB,), None)
    with pytest.raises(InputError, match=r"gfm has no teacher, expected .*; give --teacher RUN"):
        recipe.located()
    with pytest.raises(InputError, match=r"teacher '.*' holds no model .*; give the folder of a finished run"):
        replace(recipe, teacher=str(tmp_path)).located()
    with torch.device("meta"), pytest.raises(ModelInputError, match="sensor 'radar' is unknown to this encoder"):
        located.build((replace(RGB, name="radar"),), None)
