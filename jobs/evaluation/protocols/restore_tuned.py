"""The whole encoder and the restoration decoder trained together, `decoder_steps` steps; layer decay for trained weights.

From random weights it is the supervised baseline.
"""

import torch

from jobs.evaluation import restored
from jobs.evaluation.cell import Answer
from jobs.evaluation.contenders import SCRATCH
from jobs.evaluation.protocols._restoring import answered, restorer, trained
from jobs.evaluation.question import Question
from models.tuned import Tuned

KINDS = restored.KINDS
ROLE = "tuned"


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    training = question.training
    decay = 1.0 if question.contender.title == SCRATCH else training.layer_decay
    model = trained(
        question,
        lambda made: Tuned(made.encoder, made.head).parameter_groups(training.learning_rate, decay),  # type: ignore[arg-type]
        training.decoder_steps,
        is_frozen=False,
    )
    restore = restorer(model)
    return answered(question, lambda example, *_: restore(example))
