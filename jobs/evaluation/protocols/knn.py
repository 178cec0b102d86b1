"""20 nearest training samples by cosine, weighted by nearness, on standardised features."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols import _probe
from jobs.evaluation.question import Question

KINDS = _probe.KINDS
ROLE = "pooled"
NEIGHBOURS = 20


def answer(question: Question) -> Answer:
    train, _, test = _probe.parts(question)
    is_classes = question.task.kind in ("class", "binary")
    options = {"n_neighbors": min(NEIGHBOURS, len(train.labels)), "metric": "cosine", "weights": "distance"}
    # The share of several classes among the neighbours is a number for each.
    model = (KNeighborsClassifier if is_classes else KNeighborsRegressor)(**options)
    model.fit(train.vectors, train.labels if question.task.kind != "multilabel" else train.labels.astype(float))
    if question.task.kind == "binary":
        predicted = _probe.column_of_yes(model.classes_, model.predict_proba(test.vectors))
    else:
        predicted = model.predict(test.vectors)
    return _probe.answer(question, test, np.asarray(predicted))
