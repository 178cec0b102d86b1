"""A dense decoder (`models.dense_head`) on the maps of a frozen encoder, trained with AdamW for `decoder_steps` steps.

Maps are made once and not augmented. Rare classes weigh more in the loss; from which probability a pixel has changed is chosen
on val.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols import _training
from jobs.evaluation.protocols._maps import answered
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE
from models.dense_head import DenseHead

KINDS = DENSE
ROLE = "maps"
WEIGHT_DECAY = 0.05
LOOKED_AT = 128
"""Training samples from which the mean and deviation of a map's channels are taken."""

Maps = dict[str, list[np.ndarray]]


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    head = _train(question)
    return answered(question, lambda chosen, is_test: _outputs(question, head, chosen, is_test))


def _train(question: Question) -> DenseHead:
    training, task = question.training, question.label_task
    maps, targets = question.maps(question.train), _training.marked(task.targets(question.samples, question.train))
    generator, rng = torch.Generator().manual_seed(question.seed), np.random.default_rng(question.seed)
    head = head_of(maps, targets.shape[-1], len(task.classes), generator)
    head.standardise(_tensors(maps, rng.permutation(len(targets))[:LOOKED_AT]))
    optimiser = torch.optim.AdamW(head.parameters(), training.learning_rate, weight_decay=WEIGHT_DECAY)
    steps, size = training.decoder_steps, min(training.batch_size, len(question.train))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, training.learning_rate, total_steps=steps)
    weight = _training.class_weights(question)
    for _ in range(steps):
        batch = rng.choice(len(targets), size, replace=False)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = head(_tensors(maps, batch))
        loss = _training.loss_of(task.kind, outputs.float(), targets[batch], weight)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return head.eval()


def head_of(maps: dict[str, Any], side_px: int, num_outputs: int, generator: torch.Generator) -> DenseHead:
    """Return a head for maps of these shapes, sensor -> for each stage (N, T, y, x, D), whose output has `side_px` rows."""
    widths = {name: [stage.shape[-1] for stage in stages] for name, stages in maps.items()}
    dates = {name: stages[0].shape[1] for name, stages in maps.items()}
    cells = next(iter(maps.values()))[0].shape[2]
    return DenseHead(widths, dates, num_outputs, side_px // cells, generator=generator)


@torch.no_grad()
def _outputs(question: Question, head: DenseHead, chosen: np.ndarray, is_test: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return head(_tensors(question.maps(chosen, is_test), np.arange(len(chosen)))).float()


def _tensors(maps: Maps, batch: np.ndarray) -> dict[str, list[Tensor]]:
    return {name: [torch.from_numpy(stage[batch]).float() for stage in stages] for name, stages in maps.items()}
