"""As `restore`, but the decoder adds to the clear tile before the truth, as `other_date` answers, and sees the cloudy one."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols._restoring import answered, restorer, trained
from jobs.evaluation.question import Question
from jobs.evaluation.restored import CLOUD_REMOVAL, OTHER, Example

KINDS = (CLOUD_REMOVAL,)
ROLE = "frozen"


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    rate, steps = question.training.learning_rate, question.training.decoder_steps
    model = trained(question, lambda made: [{"params": list(made.head.parameters()), "lr": rate}], steps, True, from_other)
    restore = restorer(model)
    return answered(question, lambda *seen: restore(from_other(*seen)))


def from_other(example: Example, reader: Any, chosen: np.ndarray) -> Example:
    """Return the example with the other clear tile as its guess, where there is one."""
    other, is_clear = reader.clear(chosen, OTHER)
    guess = np.where(is_clear[:, None], other, example.guess)
    return replace(example, guess=guess, is_known=is_clear | example.is_known)
