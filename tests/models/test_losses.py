"""Every pure loss against its formula written out in loops, in float64, and the symmetries that its paper claims."""

import math

import pytest
import torch
from torch import Tensor

from models.objectives.barlow_twins import barlow_twins_loss
from models.objectives.byol import byol_loss
from models.objectives.dino import dino_loss
from models.objectives.mae import masked_mse, patchify, unpatchify
from models.objectives.moco import in_batch_info_nce, info_nce
from models.objectives.seco import seco_loss
from models.objectives.simclr import nt_xent
from models.objectives.vicreg import vicreg_loss

N, D, K = 7, 5, 11


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(row: Tensor) -> Tensor:
    return row / math.sqrt(sum(float(value) ** 2 for value in row))


def test_nt_xent_by_its_formula() -> None:
    z0, z1 = draw(0, N, D), draw(1, N, D)
    views = [unit(z) for z in (*z0, *z1)]
    total = 0.0
    for i, view in enumerate(views):
        similar = [math.exp(float(view @ other) / 0.3) for other in views]
        total -= math.log(similar[(i + N) % (2 * N)] / (sum(similar) - similar[i]))
    assert float(nt_xent(z0, z1, 0.3)) == pytest.approx(total / (2 * N), abs=1e-9)


def test_nt_xent_knows_no_order_and_no_length() -> None:
    z0, z1, order = draw(0, N, D), draw(1, N, D), torch.tensor([3, 1, 0, 6, 5, 2, 4])
    loss = nt_xent(z0, z1, 0.2)
    for other in (nt_xent(z1, z0, 0.2), nt_xent(z0[order], z1[order], 0.2), nt_xent(3 * z0, 0.1 * z1, 0.2)):
        assert float(other) == pytest.approx(float(loss), abs=1e-9)
    assert float(nt_xent(z0, z1[order], 0.2)) != pytest.approx(float(loss), abs=1e-3)


def test_info_nce_by_its_formula() -> None:
    query, key, queue = draw(0, N, D), draw(1, N, D), draw(2, K, D)
    total = 0.0
    for q, k in zip(query, key):
        right = math.exp(float(unit(q) @ unit(k)) / 0.2)
        total -= math.log(right / (right + sum(math.exp(float(unit(q) @ unit(n)) / 0.2) for n in queue)))
    assert float(info_nce(query, key, queue, 0.2)) == pytest.approx(total / N, abs=1e-9)
    assert float(info_nce(query, key, queue.flip(0), 0.2)) == pytest.approx(total / N, abs=1e-9)
    key.requires_grad_()
    queue.requires_grad_()
    loss = info_nce(query.requires_grad_(), key, queue, 0.2)
    loss.backward()
    assert key.grad is None
    assert queue.grad is None


def test_seco_by_its_formula() -> None:
    queries = [draw(i, N, D) for i in range(3)]
    keys = [[draw(10 + 3 * i + j, N, D) for j in range(3)] for i in range(3)]
    queues = [draw(20 + i, K, D) for i in range(3)]
    total = 0.0
    for space in range(3):
        for n in range(N):
            q = unit(queries[space][n])
            right = math.exp(float(q @ unit(keys[space][space][n])) / 0.3)
            wrong = sum(math.exp(float(q @ unit(k)) / 0.3) for k in queues[space])
            for other in range(3):
                if space != 0 and other != space:
                    wrong += sum(math.exp(float(q @ unit(k)) / 0.3) for k in keys[space][other])
            total -= math.log(right / (right + wrong)) / N
    assert float(seco_loss(queries, keys, queues, 0.3)) == pytest.approx(total, abs=1e-9)


def test_seco_ignores_in_each_space_what_the_paper_says() -> None:
    """Space 0 has no key of the batch for a negative; in 1 and 2 the two others are, in any order."""
    queries, queues = [draw(i, N, D) for i in range(3)], [draw(20 + i, K, D) for i in range(3)]
    keys = [[draw(10 + 3 * i + j, N, D) for j in range(3)] for i in range(3)]
    loss = float(seco_loss(queries, keys, queues, 0.3))

    def changed(space: int, found: list[Tensor]) -> float:
        return float(seco_loss(queries, [*keys[:space], found, *keys[space + 1 :]], queues, 0.3))

    assert changed(0, [keys[0][0], draw(40, N, D), draw(41, N, D)]) == pytest.approx(loss, abs=1e-12)
    assert changed(1, [keys[1][2], keys[1][1], keys[1][0].flip(0)]) == pytest.approx(loss, abs=1e-12)
    assert changed(2, [keys[2][0], draw(40, N, D), keys[2][2]]) != pytest.approx(loss, abs=1e-4)


def test_in_batch_info_nce_by_its_formula() -> None:
    query, keys = draw(0, 3, D), draw(1, N, D)
    total = 0.0
    for i, q in enumerate(query):
        similar = [math.exp(float(unit(q) @ unit(k)) / 0.2) for k in keys]
        total -= math.log(similar[2 + i] / sum(similar))
    assert float(in_batch_info_nce(query, keys, 0.2, first=2)) == pytest.approx(2 * 0.2 * total / 3, abs=1e-9)


def test_byol_by_its_formula() -> None:
    prediction, target = draw(0, N, D), draw(1, N, D).requires_grad_()
    expected = sum(float(((unit(p) - unit(t)) ** 2).sum()) for p, t in zip(prediction, target.detach())) / N
    loss = byol_loss(prediction.requires_grad_(), target)
    assert float(loss) == pytest.approx(expected, abs=1e-9)
    loss.backward()
    assert target.grad is None
    assert float(byol_loss(5 * target.detach(), target)) == pytest.approx(0, abs=1e-9)


def softmax(row: Tensor) -> list[float]:
    powers = [math.exp(float(value)) for value in row]
    return [power / sum(powers) for power in powers]


def test_dino_by_its_formula() -> None:
    student, teacher, center = [draw(i, N, K) for i in range(4)], [draw(9 + i, N, K) for i in range(2)], draw(20, K)
    total, count = 0.0, 0
    for i, taught in enumerate(teacher):
        for j, learnt in enumerate(student):
            if i == j:
                continue
            count += 1
            for t, s in zip(taught, learnt):
                wanted, made = softmax((t - center) / 0.04), softmax(s / 0.1)
                total -= sum(w * math.log(m) for w, m in zip(wanted, made)) / N
    assert count == 6
    assert float(dino_loss(student, teacher, center, 0.1, 0.04)) == pytest.approx(total / count, rel=1e-9)
    assert float(dino_loss(student, [t + 3 for t in teacher], center + 3, 0.1, 0.04)) == pytest.approx(total / count, rel=1e-9)


def standard(z: Tensor) -> Tensor:
    mean = [sum(float(v) for v in column) / N for column in z.T]
    std = [math.sqrt(sum((float(v) - m) ** 2 for v in column) / N) for column, m in zip(z.T, mean)]
    return torch.tensor([[(float(v) - m) / s for v, m, s in zip(row, mean, std)] for row in z], dtype=torch.float64)


def test_barlow_twins_by_its_formula() -> None:
    z0, z1 = draw(0, N, D), draw(1, N, D)
    a, b, expected = standard(z0), standard(z1), 0.0
    for i in range(D):
        for j in range(D):
            c = sum(float(a[n, i]) * float(b[n, j]) for n in range(N)) / N
            expected += (1 - c) ** 2 if i == j else 0.005 * c**2
    assert float(barlow_twins_loss(z0, z1, 0.005)) == pytest.approx(expected, abs=1e-9)


def test_barlow_twins_does_not_see_scale_offset_and_order() -> None:
    z0, z1 = draw(0, N, D), draw(1, N, D)
    loss, scale, offset = float(barlow_twins_loss(z0, z1, 0.005)), draw(2, D).abs() + 0.1, draw(3, D)
    assert float(barlow_twins_loss(z0 * scale + offset, z1, 0.005)) == pytest.approx(loss, rel=1e-8)
    assert float(barlow_twins_loss(z0[:, [2, 0, 1, 4, 3]], z1[:, [2, 0, 1, 4, 3]], 0.005)) == pytest.approx(loss, rel=1e-9)
    assert float(barlow_twins_loss(z0, z0, 0.0)) == pytest.approx(0, abs=1e-9)


def test_vicreg_by_its_formula() -> None:
    z0, z1 = 0.3 * draw(0, N, D), 0.6 * draw(1, N, D)
    invariance = sum((float(a) - float(b)) ** 2 for a, b in zip(z0.flatten(), z1.flatten())) / (N * D)
    spread, shared = 0.0, 0.0
    for z in (z0, z1):
        mean = [sum(float(v) for v in column) / N for column in z.T]
        for i in range(D):
            for j in range(D):
                c = sum((float(row[i]) - mean[i]) * (float(row[j]) - mean[j]) for row in z) / (N - 1)
                if i == j:
                    spread += max(0.0, 1 - math.sqrt(c + 1e-4)) / D / 2
                else:
                    shared += c**2 / D
    expected = 25 * invariance + 20 * spread + 3 * shared
    assert spread > 0
    assert float(vicreg_loss(z0, z1, 25, 20, 3)) == pytest.approx(expected, rel=1e-9)
    assert float(vicreg_loss(z1, z0, 25, 20, 3)) == pytest.approx(expected, rel=1e-9)
    assert float(vicreg_loss(z0 + 4, z1 + 4, 25, 20, 3)) == pytest.approx(expected, rel=1e-9)


PAIR_LOSSES = {
    "nt_xent": lambda a, b: nt_xent(a, b, 0.2),
    "info_nce": lambda a, b: info_nce(a, b, draw(2, K, D), 0.2),
    "in_batch_info_nce": lambda a, b: in_batch_info_nce(a, b, 0.2),
    "byol": byol_loss,
    "dino": lambda a, b: dino_loss([a, b], [a, b], draw(2, D), 0.1, 0.04),
    "barlow_twins": lambda a, b: barlow_twins_loss(a, b, 0.005),
    "vicreg": lambda a, b: vicreg_loss(a, b, 25, 25, 1),
    "seco": lambda a, b: seco_loss([a, b, a], [[b, a, b]] * 3, [draw(2, K, D)] * 3, 0.3),
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_order_of_samples_does_not_matter_but_who_belongs_together_does(name: str) -> None:
    z0, z1, order, loss = draw(0, N, D), draw(1, N, D), torch.tensor([3, 1, 0, 6, 5, 2, 4]), PAIR_LOSSES[name]
    assert float(loss(z0[order], z1[order])) == pytest.approx(float(loss(z0, z1)), rel=1e-9)
    assert float(loss(z0, z1[order])) != pytest.approx(float(loss(z0, z1)), rel=1e-4)


@pytest.mark.parametrize("name", ["nt_xent", "byol", "dino", "barlow_twins", "vicreg"])
def test_views_may_change_places(name: str) -> None:
    z0, z1, loss = draw(0, N, D), draw(1, N, D), PAIR_LOSSES[name]
    assert float(loss(z0, z1)) == pytest.approx(float(loss(z1, z0)), rel=1e-9)


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "in_batch_info_nce", "byol", "seco"])
def test_only_directions_count(name: str) -> None:
    """Every row may be scaled by a factor of its own."""
    z0, z1, loss = draw(0, N, D), draw(1, N, D), PAIR_LOSSES[name]
    scaled = loss(z0 * (draw(4, N, 1).abs() + 0.1), z1 * (draw(5, N, 1).abs() + 0.1))
    assert float(scaled) == pytest.approx(float(loss(z0, z1)), rel=1e-9)


@pytest.mark.parametrize("name", ["nt_xent", "in_batch_info_nce", "byol"])
def test_turning_the_space_changes_nothing(name: str) -> None:
    z0, z1, turned = draw(0, N, D), draw(1, N, D), torch.linalg.qr(draw(6, D, D)).Q
    loss = PAIR_LOSSES[name]
    assert float(loss(z0 @ turned, z1 @ turned)) == pytest.approx(float(loss(z0, z1)), rel=1e-9)


def test_redundancy_reduction_is_about_these_very_features() -> None:
    """Turned, features share what they did not; negated in both views or in another order, they do not."""
    z0, z1 = draw(0, N, D), draw(1, N, D)
    turned, sign = torch.linalg.qr(draw(6, D, D)).Q, torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64)
    for loss in (PAIR_LOSSES["barlow_twins"], PAIR_LOSSES["vicreg"]):
        assert float(loss(z0 @ turned, z1 @ turned)) != pytest.approx(float(loss(z0, z1)), rel=1e-4)
        assert float(loss(z0 * sign, z1 * sign)) == pytest.approx(float(loss(z0, z1)), rel=1e-9)
        assert float(loss(z0.flip(1), z1.flip(1))) == pytest.approx(float(loss(z0, z1)), rel=1e-9)


def test_dino_sees_neither_offsets_of_logits_nor_the_order_of_prototypes_and_crops() -> None:
    student, teacher, center = [draw(i, N, K) for i in range(5)], [draw(9 + i, N, K) for i in range(2)], draw(20, K)
    loss, order = (
        float(dino_loss(student, teacher, center, 0.1, 0.04)),
        torch.randperm(K, generator=torch.Generator().manual_seed(0)),
    )
    shifted = [s + draw(30 + i, N, 1) for i, s in enumerate(student)]
    renamed = [s[:, order] for s in student], [t[:, order] for t in teacher], center[order]
    small_last = [student[i] for i in (0, 1, 4, 2, 3)]
    both_swapped = [student[i] for i in (1, 0, 2, 3, 4)], teacher[::-1], center
    for other in ((shifted, teacher, center), renamed, (small_last, teacher, center), both_swapped):
        assert float(dino_loss(*other, 0.1, 0.04)) == pytest.approx(loss, rel=1e-9)
    assert float(dino_loss(student, teacher[::-1], center, 0.1, 0.04)) != pytest.approx(loss, rel=1e-4)


def test_patches_by_hand() -> None:
    image = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    # Second image, second row of patches, third column; its pixel (1, 0) in band 2.
    assert patches[1, 5, (1 * 2 + 0) * 3 + 2] == image[1, 2, 3, 4]
    assert torch.equal(unpatchify(patches, 2, (2, 3)), image)


@pytest.mark.parametrize("normalise", [False, True])
def test_masked_mse_by_its_formula(normalise: bool) -> None:
    prediction, target = draw(0, 2, 4, D), draw(1, 2, 4, D)
    is_masked = torch.tensor([[True, False, True, False], [False, False, True, False]])
    errors = []
    for b, n in is_masked.nonzero().tolist():
        wanted = target[b, n]
        if normalise:
            mean = float(wanted.sum()) / D
            variance = sum((float(v) - mean) ** 2 for v in wanted) / (D - 1)
            wanted = (wanted - mean) / math.sqrt(variance + 1e-6)
        errors.append(sum((float(p) - float(w)) ** 2 for p, w in zip(prediction[b, n], wanted)) / D)
    loss = masked_mse(prediction, target, is_masked, normalise)
    assert float(loss) == pytest.approx(sum(errors) / 3, abs=1e-9)
    prediction[~is_masked] += 5
    assert float(masked_mse(prediction, target, is_masked, normalise)) == pytest.approx(float(loss), abs=1e-12)
    assert float(masked_mse(prediction, target, torch.zeros_like(is_masked), normalise)) == 0
