"""One size dial from which a transformer's width, depth, heads, decoder and rate follow.

At dial k: k blocks of k heads, WIDTH_PER_DIAL channels a block, a decoder of DECODER_PER_DIAL channels a dial; dial 2 is the
shape of the tiny autoencoders. So parameters grow as k^3. The rate is that of dial 2 times (2 / k)^rate_exponent; which
exponent is right is checked by `terraloom sweep rate_transfer`, not assumed.
"""

from typing import Any

from jobs.recipes import load_recipe
from jobs.sweeping.settings import Setting
from models.vit import VitConfig
from pipeline.errors import InputError

WIDTH_PER_DIAL = 24
DECODER_PER_DIAL = 16
BASE = 2
"""The dial whose rate is given."""
MOST_DECODER_HEADS = 2


def shape(recipe_name: str, dial: int) -> tuple[Setting, ...]:
    """Return what makes the recipe one of size `dial`; raise InputError for a dial below 1 or a backbone that is no transformer."""
    if dial < 1:
        raise InputError(f"size {dial} is no size, expected 1 or more: so many blocks")
    recipe: Any = load_recipe("pretrain", recipe_name)
    if not isinstance(recipe.backbone, VitConfig):
        raise InputError(f"recipe '{recipe_name}' has a {recipe.backbone.kind} for a backbone; a family of sizes needs a vit")
    settings: list[Setting] = [("backbone", {"embed_dim": WIDTH_PER_DIAL * dial, "depth": dial, "num_heads": dial})]
    if hasattr(recipe, "decoder_width"):
        settings += [("decoder_width", DECODER_PER_DIAL * dial), ("decoder_heads", min(dial, MOST_DECODER_HEADS))]
    return tuple(settings)


def rate(base_rate: float, dial: int, exponent: float) -> float:
    """Return the peak rate of a size."""
    return float(f"{base_rate * (BASE / dial) ** exponent:.4g}")
