"""Pan-sharpening without learning: `jobs.evaluation.sharpening.bicubic`."""

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols._restoring import sharpened
from jobs.evaluation.question import Question
from jobs.evaluation.restored import SHARPENING
from jobs.evaluation.sharpening import bicubic

KINDS = (SHARPENING,)
ROLE = "pixels"


def answer(question: Question) -> Answer:
    return sharpened(question, bicubic)
