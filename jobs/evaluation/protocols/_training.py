"""What protocols with a training loop share: losses by kind of task, and what outputs answer."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.evaluation.metrics import Changed, counts_of
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE
from pipeline.labels import LabelMap

UNLABELLED = 255
THRESHOLDS = np.arange(1, 20) / 20
"""Probabilities of change from which a pixel may count as changed; which, is chosen on val."""


def num_outputs(question: Question) -> int:
    return 1 if question.task.kind in ("binary", "fraction") else len(question.task.classes)


def loss_of(kind: str, outputs: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the loss of outputs (B, K), or (B, K, Y, X) where labels are maps (B, Y, X), 255 where unlabelled."""
    if kind == "class":
        return F.cross_entropy(outputs, labels.long())
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float())
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(outputs, labels.float())
    if kind == "fraction":
        return F.mse_loss(outputs[:, 0], labels.float())
    if not (labels != UNLABELLED).any():
        return outputs.sum() * 0
    return F.cross_entropy(outputs, labels.long(), weight, ignore_index=UNLABELLED)


def answer_of(kind: str, outputs: Tensor) -> np.ndarray:
    """Return classes, scores of yes, or numbers; of maps of change the probability of it, of other maps classes."""
    if kind == "class":
        return outputs.argmax(-1).double().numpy()
    if kind in ("binary", "multilabel"):
        return (outputs[:, 0] if kind == "binary" else outputs).sigmoid().numpy()
    if kind == "fraction":
        return outputs[:, 0].numpy()
    return outputs.softmax(1)[:, 1].numpy() if kind == "change" else outputs.argmax(1).to(torch.uint8).numpy()


def marked(found: LabelMap) -> Tensor:
    """Return maps of classes (N, Y, X), 255 where unlabelled."""
    return torch.from_numpy(np.where(found.is_labelled, found.classes, UNLABELLED))


def class_weights(question: Question) -> Tensor | None:
    """Return for maps a weight of each class, one over the square root of its share of the labelled training pixels."""
    if question.task.kind not in DENSE:
        return None
    counts = np.maximum(question.samples.labels[question.train].sum(0), 1).astype(float)
    weight = (counts / counts.sum()) ** -0.5
    return torch.from_numpy(weight / weight.mean()).float()


def best_threshold(question: Question, probability: np.ndarray) -> tuple[float, float]:
    """Return the probability from which pixels of val (N, Y, X) best count as changed, and the F1 of all of them then."""
    truth, place = question.label_task.targets(question.samples, question.val), question.samples.place[question.val]
    if not (truth.classes[truth.is_labelled] == 1).any():
        return 0.5, -np.inf
    scores = []
    for threshold in THRESHOLDS:
        counts = counts_of(truth.classes, (probability >= threshold).astype(np.uint8), truth.is_labelled, 2)
        scores.append(np.nan_to_num(Changed(place, counts, question.task.classes).scores()["F1"]))
    return float(THRESHOLDS[int(np.argmax(scores))]), float(np.max(scores))
