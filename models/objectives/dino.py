"""DINO: a student's crops match the sharpened, centred output of its moving average (Caron et al. 2021, arXiv 2104.14294)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dino_loss(
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Return the mean cross-entropy over all pairs of a teacher's crop with another crop of the student.

    student_logits: one (N, K) per crop, the two global crops first; teacher_logits: the two global ones, in that order,
    without gradient; center (K,) or (1, K) is taken off the teacher's before the softmax.
    """
    learnt = [F.log_softmax(logits / student_temperature, -1) for logits in student_logits]
    taught = [F.softmax((logits.detach() - center) / teacher_temperature, -1) for logits in teacher_logits]
    pairs = [-(t * s).sum(-1).mean() for i, t in enumerate(taught) for j, s in enumerate(learnt) if i != j]
    return torch.stack(pairs).mean()
