"""A frozen encoder and a restoration decoder (`models.restoration`) on its maps and the pixels, trained for `decoder_steps`."""

import torch

from jobs.evaluation import restored
from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols._restoring import answered, restorer, trained
from jobs.evaluation.question import Question

KINDS = restored.KINDS
ROLE = "frozen"


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    rate, steps = question.training.learning_rate, question.training.decoder_steps
    model = trained(question, lambda made: [{"params": list(made.head.parameters()), "lr": rate}], steps, is_frozen=True)
    restore = restorer(model)
    return answered(question, lambda example, *_: restore(example))
