"""The whole encoder and a head trained on the labels for `finetune_steps` steps (`_fitting`), layer decay for trained weights.

A linear head on what probes see, or for maps the dense decoder. bf16 by autocast over float32 weights: an engine is not worth it
for a minute's work.
"""

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.cell import Answer
from jobs.evaluation.contenders import SCRATCH
from jobs.evaluation.protocols import _fitting, _training
from jobs.evaluation.protocols._fitting import View
from jobs.evaluation.protocols._maps import answered, batches
from jobs.evaluation.protocols.decoder import WEIGHT_DECAY, head_of, side_px
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE, METRICS
from jobs.evaluation.tiles import TileReader
from models.batch import Batch
from models.dense_head import DenseHead
from models.encoder import Encoder
from models.tuned import PooledHead, Tuned

KINDS = tuple(METRICS)
ROLE = "tuned"


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    reader = TileReader(question.task.archive, question.samples)
    disturbed = TileReader(question.task.archive, question.samples, question.perturbation)
    generator, training = torch.Generator().manual_seed(question.seed), question.training
    encoder = question.contender.encoder(question.seed)
    model = Tuned(encoder, _head(question, encoder, reader, generator))

    def outputs(chosen: np.ndarray, is_test: bool, view: View) -> tuple[Tensor, Tensor]:
        batch = (disturbed if is_test else reader).batch(chosen, view.symmetries)
        shown = {name: tiles for name, tiles in batch.tiles.items() if view.shows(name)}
        return model(Batch(shown, batch.lonlat), generator)

    decay = 1.0 if question.contender.title == SCRATCH else training.layer_decay
    groups = model.parameter_groups(training.learning_rate, decay)
    step = _fitting.fit(question, model, outputs, groups, training.finetune_steps, WEIGHT_DECAY)
    if question.task.kind in DENSE:
        return answered(question, lambda chosen, is_test: _fitting.given(outputs, chosen, is_test), stopped_at=step)
    found = torch.cat([_fitting.given(outputs, chosen, True) for chosen in batches(question.test)])
    predicted = _training.answer_of(question.task.kind, found)
    return Answer(question.task.outcome(question.samples, question.test, predicted), {"stopped_at": step})


def _head(question: Question, encoder: Encoder, reader: TileReader, generator: torch.Generator) -> PooledHead | DenseHead:
    task, dates = question.task, {name: rows.shape[1] for name, rows in question.samples.tiles.rows.items()}
    if task.kind not in DENSE:
        return PooledHead(encoder.config.pooled_width, dates, _training.num_outputs(question))
    batch = reader.batch(question.train[:1])
    with torch.no_grad():
        maps = {
            name: [m.unflatten(0, (1, -1)) for m in encoder.examined(tiles, name, batch.lonlat)[0].maps]
            for name, tiles in batch.tiles.items()
        }
    return head_of(maps, side_px(question), len(task.classes), generator)
