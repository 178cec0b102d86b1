"""Joint-embedding objectives: the same training on any number of ranks, and what each needs of a batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.errors import InputError
from models.moving import MovingAverage, cosine_momentum
from models.norms import GlobalBatchNorm
from models.objectives.byol import byol_loss
from models.objectives.moco import MocoV3, MocoV3Config, info_nce
from models.objectives.two_views import at_date, two_views
from tests.models.two_ranks import NUM_STEPS, encoder_config, make_batch, objectives, seeded, train, train_on_ranks

NAMES = list(objectives())


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return train()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train_on_ranks(2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_on_halves_are_one_on_the_whole(name: str, alone: dict, together: list) -> None:
    """Losses of five steps, the first gradients, and at the end all weights, averages, queues and centres."""
    first, second = (found[name] for found in together)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone[name]["losses"], rel=1e-4)
    # Before a batch norm a bias has no gradient but rounding's, which is as large as what cancels in it.
    largest = max(float(gradient.abs().max()) for gradient in alone[name]["gradients"].values())
    for key, gradient in alone[name]["gradients"].items():
        torch.testing.assert_close(first["gradients"][key], gradient, rtol=1e-3, atol=2e-5 * max(1.0, largest))
    for key, value in alone[name]["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_part_that_is_used_is_trained(name: str, alone: dict) -> None:
    gradients = alone[name]["gradients"]
    assert any(key.startswith("encoder.backbone") and gradient.abs().max() > 0 for key, gradient in gradients.items())
    assert any(not key.startswith("encoder") and gradient.abs().max() > 0 for key, gradient in gradients.items())
    assert not any(key.startswith(("target", "keys", "teacher")) for key in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_health_sees_what_the_loss_compares(name: str) -> None:
    objective = objectives()[name]
    pooled = objective.encoder.pooled(make_batch(0).tiles["optical"], "optical")[0].bfloat16()
    assert objective.compared(pooled).shape[1] == {"seco": 18, "dino": 10, "loom": 128}.get(name, 6)


def test_averages_follow_and_queues_fill_in_order() -> None:
    moco = objectives()["moco"]
    before = moco.queue.keys_KD.clone()
    online = moco.head.layers[0].weight.clone()
    moco(make_batch(0), seeded(0))
    moco.head.layers[0].weight.data += 1.0
    moco.after_step(0, NUM_STEPS)
    assert int(moco.queue.place) == 8
    assert torch.equal(moco.queue.keys_KD[8:], before[8:])
    assert not torch.equal(moco.queue.keys_KD[:8], before[:8])
    torch.testing.assert_close(moco.queue.keys_KD.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(moco.keys.copy[1].layers[0].weight, online + 0.1)
    for step in (1, 2):
        moco(make_batch(step), seeded(0))
        moco.after_step(step, NUM_STEPS)
    assert int(moco.queue.place) == 24 % 20


def test_moco_and_byol_compare_what_the_papers_compare() -> None:
    made, batch = objectives(), make_batch(0)
    moco, byol = made["moco"], made["byol"]
    (name, one), (_, two) = two_views(batch, "crops", moco.encoder)
    query = moco.head(moco.encoder.pooled(one, name)[0])
    key = moco.keys.copy[1](moco.keys.copy[0].pooled(two, name)[0])
    expected = info_nce(query, key, moco.queue.keys_KD, 0.2).detach()
    torch.testing.assert_close(moco(batch, seeded(0))["objective/optical"], expected)
    online = [byol.predictor(byol.projector(byol.encoder.pooled(view, name)[0])) for view in (one, two)]
    target = [byol.target.copy[1](byol.target.copy[0].pooled(view, name)[0]) for view in (one, two)]
    expected = byol_loss(online[0], target[1]) + byol_loss(online[1], target[0])
    torch.testing.assert_close(byol(batch, seeded(0))["objective/optical"], expected.detach(), rtol=1e-4, atol=1e-5)


def test_seco_compares_what_the_paper_compares() -> None:
    """Query: a crop of date 0. Keys: date 1 augmented, a crop of date 2, date 0 augmented; the i-th is space i's positive."""
    seco, batch = objectives()["seco"], make_batch(0)
    encoder, heads = seco.keys.copy
    parts = [at_date(batch.crops[crop].tiles["optical"], date) for crop, date in ((0, 0), (2, 1), (1, 2), (3, 0))]
    query = seco.encoder.pooled(parts[0], "optical")[0]
    features = [encoder.pooled(part, "optical")[0] for part in parts[1:]]
    expected = 0.0
    for space in range(3):
        keys = [heads[space](each) for each in features]
        negatives = [key for number, key in enumerate(keys) if space and number != space]
        queue = torch.cat([seco.queues[space].keys_KD, *negatives])
        assert len(queue) == 20 + (16 if space else 0)
        expected += info_nce(seco.heads[space](query), keys[space], queue, 0.2)
    torch.testing.assert_close(seco(batch, seeded(0))["objective/optical"], expected.detach())
    seco.after_step(0, NUM_STEPS)
    torch.testing.assert_close(seco.queues[2].keys_KD[:8], F.normalize(heads[2](features[2]), dim=-1))
    with pytest.raises(InputError, match="a batch has 3 dates and 0 crops, seco expects 3 and 4; set view to three dates"):
        seco(replace(batch, crops=()), seeded(0))


def test_moco_v3_can_keep_its_first_patch_embedding() -> None:
    found = {}
    for is_frozen in (False, True):
        config = MocoV3Config(hidden=12, dim=6, has_frozen_stem=is_frozen)
        objective = MocoV3(encoder_config(), config, seeded(1))
        objective(make_batch(0), seeded(0))["loss"].backward()
        found[is_frozen] = {n.split(".")[1] for n, p in objective.encoder.named_parameters("encoder") if p.grad is not None}
    assert found[False] - found[True] == {"stem"}
    assert "backbone" in found[True]


def test_dino_keeps_its_prototypes_still_at_first() -> None:
    dino = objectives()["dino"]
    dino.config = replace(dino.config, frozen_steps=1)
    for expected in (False, True):
        dino.zero_grad()
        dino(make_batch(0), seeded(0))["loss"].backward()
        gradient = dino.head.prototypes.grad
        assert (gradient is not None and bool(gradient.abs().max() > 0)) is expected
        dino.after_step(0, NUM_STEPS)


def test_views_are_crops_dates_or_sensors() -> None:
    encoder, batch = objectives()["simclr"].encoder, make_batch(1)
    (name, one), (other, two) = two_views(batch, "crops", encoder)
    assert name == other == "radar"
    assert torch.equal(two.pixels, batch.crops[1].tiles["radar"].pixels[:, :1])
    (_, one), (_, two) = two_views(batch, "dates", encoder)
    assert torch.equal(one.pixels, batch.crops[0].tiles["radar"].pixels[:, :1])
    assert torch.equal(two.pixels, batch.crops[1].tiles["radar"].pixels[:, 1:2])
    (_, one), (_, two) = two_views(replace(batch, crops=()), "dates", encoder)
    assert torch.equal(one.pixels, batch.tiles["radar"].pixels[:, :1])
    assert torch.equal(two.pixels, batch.tiles["radar"].pixels[:, 1:2])
    assert [name for name, _ in two_views(batch, "sensors", encoder)] == ["optical", "radar"]
    bare = replace(batch, crops=())
    with pytest.raises(InputError, match=r"has 0 crops, expected two views; set stream\.crops"):
        two_views(bare, "crops", encoder)
    with pytest.raises(InputError, match="expected two views of two"):
        two_views(replace(bare, tiles={"radar": batch.tiles["radar"]}), "sensors", encoder)


def test_a_moving_average_stays_in_float32_and_runs_in_the_students_precision() -> None:
    source = torch.nn.Linear(4, 4)
    average = MovingAverage(source)
    both = torch.nn.ModuleList([source, average]).bfloat16()
    assert both[0].weight.dtype == torch.bfloat16
    assert average.copy.weight.dtype == torch.float32
    assert average.run(lambda m: m(torch.ones(2, 4)), source).dtype == torch.bfloat16
    before = average.copy.weight.clone()
    source.weight.data += 1
    for _ in range(3):
        average.update(source, 0.999)
    torch.testing.assert_close(average.copy.weight, before + (1 - 0.999**3), rtol=0, atol=2e-5)
    assert cosine_momentum(0.99, 0, 10) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 10, 10) == 1.0


def test_batch_norm_is_torchs_on_one_rank() -> None:
    ours, theirs = GlobalBatchNorm(5), torch.nn.BatchNorm1d(5)
    ours.weight.data, ours.bias.data = theirs.weight.data.clone(), theirs.bias.data.clone()
    for seed in range(3):
        x = torch.randn(7, 5, generator=seeded(seed)) * 3 + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(ours(a), theirs(b))
        (ours(a) ** 3).sum().backward()
        (theirs(b) ** 3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    ours.eval(), theirs.eval()
    x = torch.randn(7, 5, generator=seeded(9))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-2, atol=1e-2)
    assert F.mse_loss(ours(x), x) > 0
