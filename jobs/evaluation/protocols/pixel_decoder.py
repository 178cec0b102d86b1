"""A frozen encoder's maps and the pixels themselves, under a head of both (`models.dense_head.PixelHead`), trained as `decoder` is.

For tasks whose edges are finer than an encoder's cells. Pixels alone already answer much here: it says how good a map can be
made with an encoder, `decoder` what is in the encoder.
"""

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols._fitting import WHOLE, View
from jobs.evaluation.protocols.decoder import Shown, head_of, side_px, trained
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE
from jobs.evaluation.tiles import TileReader
from models.dense_head import PixelHead

KINDS = DENSE
ROLE = "maps"


def answer(question: Question) -> Answer:
    torch.set_num_threads(1)
    maps, pixels, generator = Shown(question), _Pixels(question), torch.Generator().manual_seed(question.seed)
    inner = head_of(maps.some(), side_px(question) // PixelHead.BLOCK, PixelHead.DETAIL, generator)
    inner.standardise(maps.some())
    shapes = {name: found.shape[1:3] for name, found in pixels(question.train[:1], False).items()}
    head = PixelHead(inner, shapes, side_px(question), len(question.task.classes), generator)
    return trained(question, head, lambda *asked: head(maps(*asked), pixels(*asked)))


class _Pixels:
    """Pixels as the encoder normalises them, sensor -> (B, T, C, Y, X)."""

    def __init__(self, question: Question) -> None:
        archive, samples = question.task.archive, question.samples
        self._encoder = question.contender.encoder(question.seed)
        self._reader = TileReader(archive, samples)
        self._disturbed = TileReader(archive, samples, question.perturbation)

    def __call__(self, chosen: np.ndarray, is_test: bool, view: View = WHOLE) -> dict[str, Tensor]:
        batch = (self._disturbed if is_test else self._reader).batch(chosen, view.symmetries)
        return {
            name: self._encoder.normalise(tiles, self._encoder.spec(name))[0].unflatten(0, tiles.is_present.shape)
            for name, tiles in batch.tiles.items()
            if view.shows(name)
        }
