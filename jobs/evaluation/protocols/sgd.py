"""Linear probe by SGD, for sets too large for L-BFGS: a batch norm without scale, then one layer (He et al. 2022, appendix A).

Momentum 0.9, no weight decay, cosine decay over `decoder_steps` steps; the rate is chosen on val.
"""

import numpy as np
import torch
from torch import Tensor, nn

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols import _probe
from jobs.evaluation.protocols._training import answer_of, loss_of, num_outputs
from jobs.evaluation.question import Question

KINDS = _probe.KINDS
ROLE = "pooled"
RATES = (0.01, 0.1, 1.0)
MOMENTUM = 0.9


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    train, val, test = _probe.parts(question)
    fitted = [(rate, _train(question, train, rate)) for rate in RATES]
    scores = [_probe.judged(question, val, _predict(question, model, val)).scores()[question.task.metric] for _, model in fitted]
    rate, best = fitted[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]
    return _probe.answer(question, test, _predict(question, best, test), learning_rate=rate)


def _train(question: Question, train: _probe.Part, rate: float) -> nn.Module:
    rng, kind = np.random.default_rng(question.seed), question.task.kind
    layer = nn.Linear(train.vectors.shape[1], num_outputs(question))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    model = nn.Sequential(nn.BatchNorm1d(train.vectors.shape[1], affine=False), layer)
    steps, size = question.training.decoder_steps, min(question.training.batch_size, len(train.labels))
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    vectors, labels = torch.from_numpy(train.vectors).float(), torch.from_numpy(train.labels)
    model.train(size > 1)  # of one sample there is no deviation
    for _ in range(steps):
        batch = torch.from_numpy(rng.choice(len(labels), size, replace=False))
        loss = loss_of(kind, model(vectors[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def _predict(question: Question, model: nn.Module, part: _probe.Part) -> np.ndarray:
    outputs: Tensor = model(torch.from_numpy(part.vectors).float())
    return answer_of(question.task.kind, outputs)
