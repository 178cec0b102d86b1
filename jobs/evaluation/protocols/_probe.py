"""What protocols on one vector a sample share: vectors standardised by the training samples, and estimators asked for scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from jobs.evaluation.cell import Answer
from jobs.evaluation.metrics import Outcome
from jobs.evaluation.question import Question

KINDS = ("class", "binary", "fraction", "multilabel")


@dataclass(frozen=True)
class Part:
    """Vectors (N, D) of the samples numbered `chosen`, and their labels."""

    chosen: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray


def parts(question: Question) -> tuple[Part, Part, Part]:
    """Return train, val and test, standardised with the mean and deviation of train; what is not known is at the mean."""
    chosen = question.train, question.val, question.test
    vectors = standardised(*map(question.vectors, chosen[:2]), question.vectors(question.test, is_test=True))
    train, val, test = (Part(part, values, question.samples.labels[part]) for part, values in zip(chosen, vectors))
    return train, val, test


def standardised(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return vectors (N, D) with the mean and deviation of `train`; NaN, what is not known, is at the mean."""
    with np.errstate(invalid="ignore"):  # what no sample of train knows has no mean
        scaler = StandardScaler().fit(train)
        return [np.nan_to_num(scaler.transform(values)) for values in (train, *others)]


def judged(question: Question, part: Part, predicted: np.ndarray) -> Outcome:
    return question.task.outcome(question.samples, part.chosen, predicted)


def answer(question: Question, test: Part, predicted: np.ndarray, **settings: Any) -> Answer:
    return Answer(judged(question, test, predicted), settings)


def column_of_yes(classes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the probability of 1 from those of `classes`, some of which the training labels may lack."""
    found = np.flatnonzero(classes == 1)
    return probabilities[:, found[0]] if len(found) else np.zeros(len(probabilities))
