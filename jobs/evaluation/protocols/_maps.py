"""What protocols that answer with maps share: batches of val and test, the threshold of change, pictures of a few."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from jobs.evaluation.cell import Answer
from jobs.evaluation.metrics import joined
from jobs.evaluation.protocols import _training
from jobs.evaluation.question import Question
from jobs.evaluation.tiles import TileReader

BATCH_SIZE = 64
NUM_PICTURES = 6

Outputs = Callable[[np.ndarray, bool], Tensor]
"""From numbers of samples, and whether they are test samples, to (N, K, Y, X)."""


def answered(question: Question, outputs: Outputs, **settings: float) -> Answer:
    """Return the answer that outputs give, batch by batch."""
    kind = question.task.kind

    def answer(chosen: np.ndarray, is_test: bool) -> np.ndarray:
        return _training.answer_of(kind, outputs(chosen, is_test))

    if kind == "change":
        return thresholded(question, answer, **settings)
    return judged(question, lambda chosen: answer(chosen, True), **settings)


def thresholded(question: Question, probability: Callable[[np.ndarray, bool], np.ndarray], **settings: float) -> Answer:
    """Return the answer of probabilities of change (N, Y, X), from the threshold on that is best on val."""
    val = [probability(chosen, False) for chosen in batches(question.val)]
    threshold = _training.best_threshold(question, np.concatenate(val))[0] if val else 0.5
    return judged(
        question, lambda chosen: (probability(chosen, True) >= threshold).astype(np.uint8), threshold=threshold, **settings
    )


def judged(question: Question, predicted: Callable[[np.ndarray], np.ndarray], **settings: float) -> Answer:
    """Return the answer of maps of classes (N, Y, X)."""
    found, shown = [], []
    for chosen in batches(question.test):
        maps = predicted(chosen)
        found.append(question.task.outcome(question.samples, chosen, maps))
        shown.append(maps)
    return Answer(joined(found), dict(settings), pictures(question, np.concatenate(shown)))


def batches(chosen: np.ndarray) -> list[np.ndarray]:
    return [chosen[first : first + BATCH_SIZE] for first in range(0, len(chosen), BATCH_SIZE)]


def pictures(question: Question, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return the last date, the true and the predicted map of those test samples that have most of the rarer classes."""
    task, samples = question.label_task, question.samples
    rare = np.delete(samples.labels[question.test], samples.labels.sum(0).argmax(), axis=1).sum(1)
    order = np.argsort(-rare, kind="stable")[:NUM_PICTURES]
    chosen = question.test[order]
    truth = task.targets(samples, chosen)
    arrays = TileReader(task.archive, samples).arrays(chosen)[task.target_sensor(samples)]
    return {
        "image": stretched(arrays.pixels[:, -1], arrays.is_valid[:, -1]),
        "true": np.where(truth.is_labelled, truth.classes, _training.UNLABELLED),
        "predicted": predicted[order],
    }


def stretched(pixels: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
    """Return (N, Y, X, 3) uint8: three bands, or one thrice, between the 2nd and 98th percentile of the valid pixels."""
    bands = pixels[:, [3, 2, 1]] if pixels.shape[1] > 4 else pixels[:, [0, 1, 2] if pixels.shape[1] > 2 else [0, 0, 0]]
    shown = np.zeros((len(pixels), *pixels.shape[2:], 3), np.uint8)
    for number, (image, valid) in enumerate(zip(bands, is_valid)):
        if valid.any():
            low, high = np.percentile(image[:, valid], (2, 98), axis=1)[..., None, None]
            shown[number] = (np.clip((image - low) / np.maximum(high - low, 1e-6), 0, 1) * valid * 255).transpose(1, 2, 0)
    return shown
