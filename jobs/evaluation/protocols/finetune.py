"""The whole encoder and a head trained on the labels with AdamW, `finetune_steps` steps, layer decay for trained weights.

A linear head on what probes see, or for maps the dense decoder. bf16 by autocast over float32 weights: an engine is not worth it
for a minute's work.
"""

import numpy as np
import torch
from torch import Tensor, nn

from jobs.evaluation.cell import Answer
from jobs.evaluation.contenders import SCRATCH
from jobs.evaluation.protocols import _training
from jobs.evaluation.protocols._maps import answered, batches
from jobs.evaluation.protocols.decoder import head_of
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE, METRICS
from jobs.evaluation.tiles import TileReader
from models.dense_head import DenseHead
from models.encoder import Encoder
from models.tuned import PooledHead, Tuned

KINDS = tuple(METRICS)
ROLE = "tuned"
WEIGHT_DECAY = 0.05
BALANCE_WEIGHT = 0.01
"""Of the experts' balance loss."""


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    reader = TileReader(question.task.archive, question.samples)
    model = _train(question, reader)
    disturbed = TileReader(question.task.archive, question.samples, question.perturbation) if question.perturbation else reader

    def outputs(chosen: np.ndarray, is_test: bool) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model((disturbed if is_test else reader).batch(chosen))[0]

    if question.task.kind in DENSE:
        return answered(question, outputs)
    found = torch.cat([outputs(chosen, True) for chosen in batches(question.test)])
    predicted = _training.answer_of(question.task.kind, found)
    return Answer(question.task.outcome(question.samples, question.test, predicted))


def _train(question: Question, reader: TileReader) -> Tuned:
    training, task = question.training, question.task
    generator, rng = torch.Generator().manual_seed(question.seed), np.random.default_rng(question.seed)
    encoder = question.contender.encoder(question.seed)
    model = Tuned(encoder, _head(question, encoder, reader, generator))
    decay = 1.0 if question.contender.title == SCRATCH else training.layer_decay
    groups = model.parameter_groups(training.learning_rate, decay)
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    steps, size = training.finetune_steps, min(training.batch_size, len(question.train))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [group["lr"] for group in groups], total_steps=steps)
    weight = _training.class_weights(question)
    model.train()
    for _ in range(steps):
        chosen = rng.choice(question.train, size, replace=False)
        symmetries = rng.integers(8, size=size) if training.augment else np.zeros(size, int)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, balance = model(reader.batch(chosen, symmetries), generator)
        loss = _training.loss_of(task.kind, outputs, _labels(question, chosen, symmetries), weight) + BALANCE_WEIGHT * balance
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def _head(question: Question, encoder: Encoder, reader: TileReader, generator: torch.Generator) -> PooledHead | DenseHead:
    task, dates = question.task, {name: rows.shape[1] for name, rows in question.samples.tiles.rows.items()}
    if task.kind not in DENSE:
        return PooledHead(encoder.config.pooled_width, dates, _training.num_outputs(question))
    batch = reader.batch(question.train[:1])
    with torch.no_grad():
        shapes = {
            name: [m.unflatten(0, (1, -1)) for m in encoder.examined(tiles, name, batch.lonlat)[0].maps]
            for name, tiles in batch.tiles.items()
        }
    side_px = batch.tiles[question.label_task.target_sensor(question.samples)].pixels.shape[-1]
    return head_of(shapes, side_px, len(task.classes), generator)


def _labels(question: Question, chosen: np.ndarray, symmetries: np.ndarray) -> Tensor:
    if question.task.kind not in DENSE:
        return torch.from_numpy(question.samples.labels[chosen])
    return turned(_training.marked(question.label_task.targets(question.samples, chosen)), symmetries)


def turned(maps: Tensor, symmetries: np.ndarray) -> Tensor:
    """Return each map (N, Y, X) under its symmetry, as `pipeline.augment.turn` turns its tiles."""
    quarter = [torch.rot90(found, int(symmetry) % 4, (-2, -1)) for found, symmetry in zip(maps, symmetries)]
    return torch.stack([found.flip(-1) if symmetry >= 4 else found for found, symmetry in zip(quarter, symmetries)])
