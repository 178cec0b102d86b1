"""Linear probe: logistic regression by L-BFGS, for fractions ridge regression; strength and whitening chosen on val.

Features are standardised, then left so or whitened on at most 128 principal components. After masked modelling most variance
lies in a few directions (effective rank 15 of 336 on the demo), and without whitening the penalty hides the rest (0.68 instead
of 0.79 accuracy there); of few samples whitening makes noise as large as what tells classes apart (RSSCN7, docs/benchmarks.md).
Several classes a sample: one regression each.
"""

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols import _probe
from jobs.evaluation.question import Question

KINDS = _probe.KINDS
ROLE = "pooled"
STRENGTHS = tuple(10.0 ** np.arange(-4, 2))
MAX_COMPONENTS = 128
MAX_ITERATIONS = 300
TOLERANCE = 1e-6
"""Of the largest spread, below which an axis is rounding; and the least deviation that an axis is divided by."""

Predict = Callable[[np.ndarray], np.ndarray]


def answer(question: Question) -> Answer:
    train, val, test = _probe.parts(question)
    metric = question.task.metric
    chosen, predict = probe(question.task.kind, train, val, lambda found: _probe.judged(question, val, found).scores()[metric])
    return _probe.answer(question, test, predict(test.vectors), **chosen)


def probe(
    kind: str, train: _probe.Part, val: _probe.Part, score: Callable[[np.ndarray], float]
) -> tuple[dict[str, float], Predict]:
    """Return the settings whose answers to `val` have the best score, and what makes answers of standardised vectors.

    Of equal ones the stronger penalty, and whitened vectors.
    """
    # Penalised weights lie in the span of the training samples: along its axes they are the same, and few where samples are few.
    _, spread, axes = np.linalg.svd(train.vectors.astype(np.float64), full_matrices=False)
    rank = max(1, int((spread > TOLERANCE * spread[0]).sum()))
    deviation = np.maximum(spread / len(train.vectors) ** 0.5, TOLERANCE)[: min(rank, MAX_COMPONENTS)]
    views = {True: axes[: len(deviation)].T / deviation, False: axes[:rank].T}
    tried: list[tuple[float, bool, float, Predict]] = []
    for is_whitened, view in views.items():
        vectors, held = train.vectors @ view, val.vectors @ view
        for strength in map(float, STRENGTHS):
            predict = fit(kind, vectors, train.labels, strength)
            tried.append((float(np.nan_to_num(score(predict(held)), nan=-np.inf)), is_whitened, strength, predict))
    _, is_whitened, strength, best = max(tried, key=lambda found: found[0])
    return {"strength": strength, "whitened": is_whitened}, lambda vectors: best(vectors @ views[is_whitened])


def fit(kind: str, vectors: np.ndarray, labels: np.ndarray, strength: float) -> Predict:
    """Return what the probe of inverse penalty `strength` makes of vectors: classes, probabilities of yes, or numbers."""
    if kind == "multilabel":
        each = [fit("binary", vectors, column.astype(float), strength) for column in labels.T]
        return lambda found: np.stack([predict(found) for predict in each], 1)
    if kind == "fraction":
        # Ridge penalises per data set, logistic regression per sample: scaled to mean the same.
        return Ridge(alpha=1 / strength).fit(vectors, labels).predict
    if len(np.unique(labels)) == 1:
        return lambda found: np.full(len(found), labels[0])
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak strengths need not converge to be ruled out
        model.fit(vectors, labels)
    return model.predict if kind == "class" else lambda found: _probe.column_of_yes(model.classes_, model.predict_proba(found))
