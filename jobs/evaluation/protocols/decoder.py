"""A dense decoder (`models.dense_head`) on the maps of a frozen encoder, trained for `decoder_steps` steps (`_fitting`).

Maps are made once, and turned as they are. Rare classes weigh more in the loss; from which probability a pixel has changed is
chosen on val.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols import _fitting
from jobs.evaluation.protocols._maps import answered
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE
from models.dense_head import DenseHead

KINDS = DENSE
ROLE = "maps"
WEIGHT_DECAY = 0.05
LOOKED_AT = 128
"""Training samples from which the mean and deviation of a map's channels are taken."""

Maps = dict[str, list[Tensor]]


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    maps, generator = Shown(question), torch.Generator().manual_seed(question.seed)
    head = head_of(maps.some(), side_px(question), len(question.task.classes), generator)
    head.standardise(maps.some())
    return trained(question, head, lambda *asked: head(maps(*asked)))


def trained(question: Question, head: torch.nn.Module, outputs: Callable[[np.ndarray, bool, _fitting.View], Tensor]) -> Answer:
    """Return the answer of `head`, which makes `outputs` (B, K, Y, X), once it is trained."""

    def both(chosen: np.ndarray, is_test: bool, view: _fitting.View) -> tuple[Tensor, Tensor]:
        return outputs(chosen, is_test, view), torch.zeros(())

    training = question.training
    groups = [{"params": list(head.parameters()), "lr": training.learning_rate}]
    steps = _fitting.fit(question, head, both, groups, training.decoder_steps, WEIGHT_DECAY)
    return answered(question, lambda chosen, is_test: _fitting.given(both, chosen, is_test), stopped_at=steps)


class Shown:
    """A frozen encoder's maps under a view, sensor -> for each stage (B, T, y, x, D); those of training and val are in memory."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._known = np.sort(np.concatenate([question.train, question.val]))
        self._maps = question.maps(self._known)

    def __call__(self, chosen: np.ndarray, is_test: bool, view: _fitting.View = _fitting.WHOLE) -> Maps:
        places = np.searchsorted(self._known, chosen)
        found = self._question.maps(chosen, True) if is_test else {n: [m[places] for m in s] for n, s in self._maps.items()}
        return {
            name: [_fitting.turned(torch.from_numpy(stage).float(), view, (2, 3)) for stage in stages]
            for name, stages in found.items()
            if view.shows(name)
        }

    def some(self) -> Maps:
        """Return those of some training samples."""
        rng = np.random.default_rng(self._question.seed)
        return self(rng.permutation(self._question.train)[:LOOKED_AT], False)


def side_px(question: Question) -> int:
    """Return the side of the maps that are asked for, in pixels."""
    archive = question.task.archive
    return archive.sensors[question.label_task.target_sensor(question.samples)].tile_shape(archive.grid.site_size_m)[0]


def head_of(maps: Maps, side_px: int, num_outputs: int, generator: torch.Generator) -> DenseHead:
    """Return a head for maps of these shapes, whose output has `side_px` rows, or as many as the maps where those are more."""
    widths = {name: [stage.shape[-1] for stage in stages] for name, stages in maps.items()}
    dates = {name: stages[0].shape[1] for name, stages in maps.items()}
    cells = next(iter(maps.values()))[0].shape[2]
    return DenseHead(widths, dates, num_outputs, max(1, side_px // cells), generator=generator)
