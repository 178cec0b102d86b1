"""A frozen encoder's maps and the pixels themselves, under a head of both (`models.dense_head.PixelHead`), trained as `decoder` is.

For tasks whose edges are finer than an encoder's cells. Pixels alone already answer much here: it says how good a map can be
made with an encoder, `decoder` what is in the encoder.
"""

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols import decoder
from jobs.evaluation.protocols._maps import answered
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE
from jobs.evaluation.tiles import TileReader
from models.dense_head import PixelHead

KINDS = DENSE
ROLE = "maps"


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    maps, pixels = question.maps(question.train), _pixels(question, question.train, False)
    generator, outputs = torch.Generator().manual_seed(question.seed), len(question.label_task.classes)
    inner = decoder.head_of(maps, decoder.side_px(question), PixelHead.DETAIL, generator)
    decoder.standardise(inner, maps, question.seed)
    bands = {name: found.shape[2] for name, found in pixels.items()}
    dates = {name: found.shape[1] for name, found in pixels.items()}
    head = PixelHead(inner, bands, dates, outputs, generator)
    decoder.trained(
        question, head, lambda batch: head(decoder.tensors(maps, batch), {n: found[batch] for n, found in pixels.items()})
    )

    def answers(chosen: np.ndarray, is_test: bool) -> Tensor:
        seen = decoder.tensors(question.maps(chosen, is_test), np.arange(len(chosen)))
        return decoder.given(lambda: head(seen, _pixels(question, chosen, is_test)))

    return answered(question, answers)


def _pixels(question: Question, chosen: np.ndarray, is_test: bool) -> dict[str, Tensor]:
    """Return sensor -> (N, T, C, Y, X), pixels as the encoder normalises them."""
    encoder = question.contender.encoder(question.seed)
    reader = TileReader(question.task.archive, question.samples, question.perturbation if is_test else None)
    batch = reader.batch(chosen)
    return {
        name: encoder.normalise(tiles, encoder.spec(name))[0].unflatten(0, tiles.is_present.shape)
        for name, tiles in batch.tiles.items()
    }
