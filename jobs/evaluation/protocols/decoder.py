"""A dense decoder (`models.dense_head`) on the maps of a frozen encoder, trained with AdamW for `decoder_steps` steps.

Maps are made once and not augmented. Rare classes weigh more in the loss; from which probability a pixel has changed is chosen
on val.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    maps = question.maps(question.train)
    head = head_of(maps, side_px(question), len(question.label_task.classes), torch.Generator().manual_seed(question.seed))
    standardise(head, maps, question.seed)
    trained(question, head, lambda batch: head(tensors(maps, batch)))
    return answered(
        question, lambda chosen, is_test: given(lambda: head(tensors(question.maps(chosen, is_test), np.arange(len(chosen)))))
    )


def trained(question: Question, head: nn.Module, outputs: Callable[[np.ndarray], Tensor]) -> None:
    """Train `head`, which makes `outputs` (B, K, Y, X) of the training samples at places of `question.train`."""
    training, task, rng = question.training, question.label_task, np.random.default_rng(question.seed)
    targets = _training.marked(task.targets(question.samples, question.train))
    optimiser = torch.optim.AdamW(head.parameters(), training.learning_rate, weight_decay=WEIGHT_DECAY)
    steps, size = training.decoder_steps, min(training.batch_size, len(question.train))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, training.learning_rate, total_steps=steps)
    weight = _training.class_weights(question)
    for _ in range(steps):
        batch = rng.choice(len(targets), size, replace=False)
        with torch.autocast("cpu", torch.bfloat16):
            made = outputs(batch)
        loss = _training.loss_of(task.kind, made.float(), targets[batch], weight)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    head.eval()


@torch.no_grad()
def given(outputs: Callable[[], Tensor]) -> Tensor:
    """Return what a trained head answers, float32."""
    with torch.autocast("cpu", torch.bfloat16):
        return outputs().float()


def standardise(head: DenseHead, maps: Maps, seed: int) -> None:
    """Have the head see the channels of some of the training samples' maps at one scale."""
    count = len(next(iter(maps.values()))[0])
    head.standardise(tensors(maps, np.random.default_rng(seed).permutation(count)[:LOOKED_AT]))


def side_px(question: Question) -> int:
    """Return the side of the maps that are asked for, in pixels."""
    archive = question.task.archive
    return archive.sensors[question.label_task.target_sensor(question.samples)].tile_shape(archive.grid.site_size_m)[0]


def head_of(maps: dict[str, Any], side_px: int, num_outputs: int, generator: torch.Generator) -> DenseHead:
    """Return a head for maps of these shapes, sensor -> for each stage (N, T, y, x, D), whose output has `side_px` rows."""
    widths = {name: [stage.shape[-1] for stage in stages] for name, stages in maps.items()}
    dates = {name: stages[0].shape[1] for name, stages in maps.items()}
    cells = next(iter(maps.values()))[0].shape[2]
    return DenseHead(widths, dates, num_outputs, side_px // cells, generator=generator)


def tensors(maps: Maps, batch: np.ndarray) -> dict[str, list[Tensor]]:
    return {name: [torch.from_numpy(stage[batch]).float() for stage in stages] for name, stages in maps.items()}
