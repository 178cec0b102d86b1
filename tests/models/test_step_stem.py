import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.sensor import SensorSpec
from models.stems.steps import StepProjection, StepStemConfig, factors

Make = Callable[..., Batch]
MakeConfig = Callable[..., EncoderConfig]
Specs = dict[str, SensorSpec]


@pytest.mark.parametrize(
    ("patch", "expected"),
    [(1, (1, 1, 1)), (2, (2, 1, 1)), (4, (2, 2, 1)), (8, (2, 2, 2)), (14, (7, 2, 1)), (16, (4, 2, 2)), (32, (4, 4, 2))],
)
def test_steps_make_the_patch(patch: int, expected: tuple[int, int, int]) -> None:
    assert factors(patch) == expected
    assert math.prod(factors(patch)) == patch


def test_a_token_sees_its_own_patch_alone(generator: torch.Generator) -> None:
    stem = StepProjection(2, 4, 8).eval()
    initialise(stem, generator)
    pixels = torch.randn(1, 2, 12, 8, generator=generator)
    other = pixels.clone()
    other[:, :, 4:8, :4] += 1
    changed = (stem(pixels) != stem(other)).any(-1)
    assert changed.nonzero().tolist() == [[0, 1, 0]]


def test_what_training_saw_goes_with_the_encoder(make_config: MakeConfig, make_batch: Make, specs: Specs, tmp_path: Path) -> None:
    """Embeddings rest on the running statistics, of which fresh ones would be others."""
    config = replace(make_config(specs["optical"]), stem=StepStemConfig())
    encoder, batch = Encoder(config), make_batch(specs["optical"])
    untrained = encoder.encode(batch)["optical"].pooled
    encoder.train()
    for seed in range(5):
        encoder.pooled(make_batch(specs["optical"], seed=seed).tiles["optical"], "optical")
    trained = encoder.encode(batch)["optical"].pooled
    assert not torch.allclose(trained, untrained, atol=1e-3)
    encoder.save(tmp_path)
    torch.testing.assert_close(Encoder.load(tmp_path).encode(batch)["optical"].pooled, trained)


def test_other_bands_are_refused(make_config: MakeConfig, specs: Specs) -> None:
    encoder = Encoder(replace(make_config(specs["optical"]), stem=StepStemConfig()))
    with pytest.raises(InputError, match="serves the bands it was trained on"):
        encoder.extended(specs["optical"].select(["nir"]))


def test_it_is_not_blind_before_its_statistics_are_learnt(generator: torch.Generator) -> None:
    stem = StepProjection(12, 16, 32).eval()
    initialise(stem, generator)
    assert 0.1 < stem(torch.randn(4, 12, 64, 64, generator=generator)).std() < 2
