"""Linear probe: logistic regression by L-BFGS, for fractions ridge regression, on whitened features; the strength chosen on val.

Features are standardised, then whitened on at most 128 principal components. Whitening matters: masked modelling leaves most
variance in a few directions (effective rank 15 of 336 on the demo), and without it the penalty hides the rest (0.68 instead of
0.79 accuracy there, and the solver needs a hundred times longer). Several classes a sample: one regression each.
"""

import warnings
from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA
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

Predict = Callable[[np.ndarray], np.ndarray]


def answer(question: Question) -> Answer:
    train, val, test = _probe.parts(question)
    metric = question.task.metric
    strength, predict = probe(question.task.kind, train, val, lambda found: _probe.judged(question, val, found).scores()[metric])
    return _probe.answer(question, test, predict(test.vectors), strength=strength)


def probe(kind: str, train: _probe.Part, val: _probe.Part, score: Callable[[np.ndarray], float]) -> tuple[float, Predict]:
    """Return the strength whose answers to `val` have the best score, and what makes answers of standardised vectors."""
    whitening = PCA(min(MAX_COMPONENTS, *train.vectors.shape), whiten=True, svd_solver="full").fit(train.vectors)
    seen, held = whitening.transform(train.vectors), whitening.transform(val.vectors)
    fitted = [(strength, fit(kind, seen, train.labels, strength)) for strength in STRENGTHS]
    scores = [np.nan_to_num(score(predict(held)), nan=-np.inf) for _, predict in fitted]
    strength, best = fitted[int(np.argmax(scores))]
    return float(strength), lambda vectors: best(whitening.transform(vectors))


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
