"""Operations counted are those of the layers that tokens go through."""

import pytest
import torch

from models.batch import Batch, Tiles
from models.encoder import EncoderConfig
from models.flops import FlopCounter
from models.objectives.mae import Mae, MaeConfig
from models.sensor import SensorSpec
from models.vit import VitConfig

SPEC = SensorSpec("dem", "active", "height", "m", 10.0, ("height",), (None,), (0.0,), (1.0,))


def products(tokens: int, width: int) -> int:
    """Return the operations of one block, forward: four projections, an MLP of four times the width, scores and their values."""
    return 2 * tokens * 12 * width**2 + 4 * tokens**2 * width


@pytest.mark.parametrize(("dtype", "side"), [(torch.float32, 16), (torch.bfloat16, 16), (torch.bfloat16, 24)])
def test_a_masked_autoencoder_is_counted_token_by_token(dtype: torch.dtype, side: int) -> None:
    """Within 4 %: the first layer needs no gradient of its input."""
    tokens, batch, width, decoder = side**2, 2, 64, 32
    shape = (batch, 1, 1, 4 * side, 4 * side)
    present, days = torch.ones(batch, 1, dtype=torch.bool), torch.zeros(batch, 1, dtype=torch.float64)
    tiles = Tiles(torch.randn(shape), torch.ones(shape[:2] + shape[3:], dtype=torch.bool), present, days, SPEC.bands, "m", 10.0)
    config = EncoderConfig(VitConfig(width, 3, 4), 40.0, (SPEC,), hidden="absent")
    model = Mae(config, MaeConfig(VitConfig(decoder, 2, 4, has_class_token=False))).to(dtype)
    made = Batch({"dem": tiles}, torch.zeros(batch, 2, dtype=torch.float64))
    losses = []
    for counter in (FlopCounter(), None):
        if counter is None:
            losses.append(model(made, torch.Generator().manual_seed(0))["loss"])
        else:
            with counter:
                losses.append(model(made, torch.Generator().manual_seed(0))["loss"])
                losses[0].backward()
            total = counter.total
    assert torch.equal(*losses), "counting changes nothing"
    seen, places = tokens // 4 + 1, tokens + 1
    forward = 3 * products(seen, width) + 2 * products(places, decoder)
    forward += 2 * tokens * 16 * width + 2 * seen * width * decoder + 2 * tokens * decoder * 16
    assert total == pytest.approx(3 * batch * forward, rel=0.04)
