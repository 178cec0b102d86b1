"""The one training loop of decoders and of fine-tuning: AdamW, a rate that rises and falls once, the best of several looks at val.

Training samples are turned together with their labels, and in some steps all but one of several sensors are hidden, so that
none is leaned on alone. What val says decides when to stop, never test: events and cities that were not trained on look
otherwise, and too many steps on the old ones are worse on them.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.evaluation.protocols import _training
from jobs.evaluation.protocols._maps import batches
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE

LOOKS = 8
"""At val, evenly over the steps, the last among them."""
HIDING_SHARE = 0.25
"""Of the steps with several sensors, those that show one of them only."""
BALANCE_WEIGHT = 0.01
"""Of the experts' balance loss."""


@dataclass(frozen=True)
class View:
    """How a batch is shown: each sample under a symmetry of the square (B,), and only some sensors. None: as it is, all of them."""

    symmetries: np.ndarray | None = None
    sensors: tuple[str, ...] | None = None

    def shows(self, sensor: str) -> bool:
        return self.sensors is None or sensor in self.sensors


WHOLE = View()
Outputs = Callable[[np.ndarray, bool, View], tuple[Tensor, Tensor]]
"""From numbers of samples, whether they are test samples, and a view: (B, K) or (B, K, Y, X), and the experts' balance loss."""


def fit(question: Question, model: nn.Module, outputs: Outputs, groups: list[dict[str, Any]], steps: int, decay: float) -> int:
    """Train `model`, which makes `outputs`, to what it was at its best look at val; return after which step that was.

    `groups` are parameters with their largest rate, `decay` their weight decay.
    """
    rng, kind = np.random.default_rng(question.seed), question.task.kind
    weight, labels = _training.class_weights(question), _Labels(question)
    size = min(question.training.batch_size, len(question.train))
    looks = np.linspace(0, steps, min(LOOKS, steps) + 1).round().astype(int)[1:].tolist()
    best, kept, found_at = -np.inf, deepcopy(model.state_dict()), 0

    def loss() -> Tensor:
        chosen = rng.choice(question.train, size, replace=False)
        view = _drawn(question, size, rng)
        made, balance = outputs(chosen, False, view)
        return _training.loss_of(kind, made.float(), labels(chosen, view), weight) + BALANCE_WEIGHT * balance

    for step in optimised(model, groups, steps, decay, loss):
        if step in looks:
            score = _score(question, model, outputs)
            if score >= best:  # the last look, where val defines no score
                best, kept, found_at = score, deepcopy(model.state_dict()), step
            model.train()
    model.load_state_dict(kept)
    model.eval()
    return found_at


def optimised(
    model: nn.Module, groups: list[dict[str, Any]], steps: int, decay: float, loss: Callable[[], Tensor]
) -> Iterable[int]:
    """Take `steps` steps of AdamW down `loss`, in bf16 by autocast over float32 weights; yield the number of each once taken.

    `groups` are parameters with their largest rate, which is risen to and left once.
    """
    optimiser = torch.optim.AdamW(groups, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [group["lr"] for group in groups], total_steps=steps)
    model.train()
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step


@torch.no_grad()
def given(outputs: Outputs, chosen: np.ndarray, is_test: bool) -> Tensor:
    """Return what a trained model makes of whole samples, float32."""
    with torch.autocast("cpu", torch.bfloat16):
        return outputs(chosen, is_test, WHOLE)[0].float()


def turned(maps: Tensor, view: View, axes: tuple[int, int] = (-2, -1)) -> Tensor:
    """Return each sample's maps (N, ...) under its symmetry, as `pipeline.augment.turn` turns its tiles; y and x are `axes`."""
    if view.symmetries is None:
        return maps
    one = [axis - 1 if axis > 0 else axis for axis in axes]
    found = [torch.rot90(part, int(number) % 4, one) for part, number in zip(maps, view.symmetries)]
    return torch.stack([part.flip(one[1]) if number >= 4 else part for part, number in zip(found, view.symmetries)])


class _Labels:
    """Labels of samples under a view; maps are read once."""

    def __init__(self, question: Question) -> None:
        self._question, self._maps = question, torch.empty(0)
        if question.task.kind in DENSE:
            self._maps = _training.marked(question.label_task.targets(question.samples, question.train))

    def __call__(self, chosen: np.ndarray, view: View) -> Tensor:
        if self._question.task.kind not in DENSE:
            return torch.from_numpy(self._question.samples.labels[chosen])
        return turned(self._maps[np.searchsorted(self._question.train, chosen)], view)


def _drawn(question: Question, size: int, rng: np.random.Generator) -> View:
    if not question.training.augment:
        return WHOLE
    sensors = question.samples.sensors
    is_hiding = len(sensors) > 1 and rng.random() < HIDING_SHARE
    return View(rng.integers(8, size=size), (str(rng.choice(sensors)),) if is_hiding else None)


def _score(question: Question, model: nn.Module, outputs: Outputs) -> float:
    """Return the task's metric on val; -inf where val does not define it."""
    model.eval()
    found = torch.cat([given(outputs, chosen, False) for chosen in batches(question.val)])
    answer = _training.answer_of(question.task.kind, found)
    if question.task.kind == "change":
        return _training.best_threshold(question, answer)[1]
    scores = question.task.outcome(question.samples, question.val, answer).scores()
    return float(np.nan_to_num(scores[question.task.metric], nan=-np.inf))
