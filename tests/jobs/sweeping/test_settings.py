"""Settings as plans write them become a recipe's typed ones, all at once; wrong ones are named."""

import pytest

from jobs.recipes import load_recipe
from jobs.sweeping.settings import changed
from models.vit import VitConfig
from pipeline.errors import InputError
from pipeline.views import TemporalPair


def test_settings_reach_every_depth() -> None:
    recipe = changed(
        load_recipe("pretrain", "simclr_tiny"),
        [
            ("train.optimiser.learning_rate", 1),
            ("backbone", {"embed_dim": 96, "num_heads": 4}),
            ("backbone.depth", 3),
            ("train.view", {"kind": "TemporalPair", "min_gap_days": 20}),
            ("train.sensor_sets", [["a", "b"], ["c"]]),
            ("train.stream.crops", None),
            ("objective.views", "dates"),
        ],
    )
    assert recipe.backbone == VitConfig(embed_dim=96, depth=3, num_heads=4)
    assert recipe.train.optimiser.learning_rate == 1.0
    assert recipe.train.view == TemporalPair(20.0)
    assert recipe.train.sensor_sets == (("a", "b"), ("c",))
    assert recipe.train.stream.crops is None
    assert recipe.objective.views == "dates"


def test_settings_that_are_right_together_only() -> None:
    """One lane cannot be shared by two workers, nor 72 channels by four heads: neither is ever so in between."""
    recipe = changed(load_recipe("pretrain", "mae_tiny"), [("train.lanes", 1), ("train.workers", "0")])
    assert (recipe.train.lanes, recipe.train.most) == (1, 0)
    with pytest.raises(InputError, match="1 lanes cannot be shared evenly by 2 workers"):
        changed(load_recipe("pretrain", "mae_tiny"), [("train.lanes", 1)])


def test_a_mixture_replaces_none_and_none_a_mixture() -> None:
    assert changed(load_recipe("pretrain", "mae_tiny"), [("backbone.moe", {"num_experts": 4})]).backbone.moe.num_experts == 4
    assert changed(load_recipe("pretrain", "loom_tiny"), [("backbone.moe", None)]).backbone.moe is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("mask_ration", 0.5, "setting 'mask_ration' names 'mask_ration', which MaeRecipe lacks .*did you mean 'mask_ratio'"),
        ("train.optimiser.rate", 1.0, "setting 'train.optimiser.rate' names 'rate', which OptimiserConfig lacks"),
        ("mask_ratio", "half", "setting 'mask_ratio' is 'half', expected float"),
        ("train.num_steps", 2.5, "setting 'train.num_steps' is 2.5, expected int"),
        ("train.view", {"kind": "Seasons"}, "is of kind 'Seasons', expected one of Single, CrossSensor"),
        ("train.view", 3, "setting 'train.view' is 3, expected"),
        ("backbone.moe", {"top_k": 3}, r"settings backbone.moe.top_k: mixture of experts has num_experts 8, top_k 3"),
        ("mask_ratio.inner", 1, "setting 'mask_ratio' is {'inner': 1}, expected a plain value"),
    ],
)
def test_wrong_settings_are_named(path: str, value: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        changed(load_recipe("pretrain", "mae_tiny"), [(path, value)])
