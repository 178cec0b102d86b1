"""What protocols that answer with images share: training an encoder and a decoder, answers in batches, pictures of a few."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.batches import to_tiles
from jobs.evaluation.cell import Answer
from jobs.evaluation.pan_sharpening import PanSharpening
from jobs.evaluation.protocols._fitting import optimised
from jobs.evaluation.question import Question
from jobs.evaluation.restored import Example, Reader
from jobs.evaluation.sharpening import Pair
from jobs.figures import to_rgb
from models.batch import Batch
from models.restoration import RestorationDecoder, Restorer
from pipeline.sensors import Sensor

BATCH_SIZE = 16
NUM_PICTURES = 6
WEIGHT_DECAY = 0.01


Begun = Callable[[Example, Reader, np.ndarray], Example]
"""Makes of an example, its reader and the samples' numbers what the decoder begins from."""


def trained(
    question: Question,
    groups: Callable[[Restorer], list[dict[str, Any]]],
    steps: int,
    is_frozen: bool,
    begun: Begun = lambda example, *_: example,
) -> Restorer:
    """Return an encoder with a decoder, trained to the least mean absolute difference, in deviations of the sensor."""
    task: Any = question.task
    generator, rng = torch.Generator().manual_seed(question.seed), np.random.default_rng(question.seed)
    encoder, reader = question.contender.encoder(question.seed), task.reader(question.samples)
    specs = [encoder.spec(name) for name in question.samples.sensors]
    widths = [encoder.config.backbone.width(stage) for stage in range(encoder.config.backbone.num_stages)]
    model = Restorer(encoder, RestorationDecoder(specs, specs[0], widths, generator=generator), specs[0], is_frozen)
    size = min(BATCH_SIZE, question.training.batch_size, len(question.train))

    def loss() -> Tensor:
        chosen = rng.choice(question.train, size, replace=False)
        example = begun(reader.example(chosen), reader, chosen)
        example = example.turned(rng.integers(8, size=size)) if question.training.augment else example
        outputs, balance = model(*tensors(example), generator)
        return model.loss(outputs.float(), tensor(example.truth), tensor(example.is_valid)) + balance

    for _ in optimised(model, groups(model), steps, WEIGHT_DECAY, loss):
        pass
    return model.eval()


def tensors(example: Example) -> tuple[Batch, Tensor, Tensor]:
    """Return what the encoder sees, the guess and where it is known."""
    lonlat = torch.full((len(example.guess), 2), torch.nan, dtype=torch.float64)
    batch = Batch({name: to_tiles(arrays) for name, arrays in example.inputs.items()}, lonlat)
    return batch, tensor(example.guess), tensor(example.is_known)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def restorer(model: Restorer) -> Callable[[Example], np.ndarray]:
    """Return what turns an example into images in the target sensor's unit."""

    @torch.no_grad()
    def restore(example: Example) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            outputs, _ = model(*tensors(example))
        return model.physical(outputs.float()).numpy()

    return restore


def answered(question: Question, restore: Callable[[Example, Reader, np.ndarray], np.ndarray]) -> Answer:
    """Return the answer of a function from an example, its reader and the samples' numbers to images."""
    task: Any = question.task
    reader, coarse, fine = task.reader(question.samples, question.perturbation), [], []
    for chosen in _batches(question.test):
        coarse.append(restore(reader.example(chosen), reader, chosen))
        if isinstance(task, PanSharpening):
            fine.append(restore(reader.full(chosen), reader, chosen))
    images = np.concatenate(coarse)
    predicted = (images, np.concatenate(fine)) if fine else images
    return Answer(task.outcome(question.samples, question.test, predicted), {}, pictures(question, images))


def sharpened(question: Question, sharpen: Callable[[Pair], np.ndarray]) -> Answer:
    """Return the answer of a sharpener that learns nothing."""
    task: Any = question.task
    pairs = task.reader(question.samples, question.perturbation).disturbed_pairs(question.test)
    coarse, fine = np.stack([sharpen(pair.reduced()) for pair in pairs]), np.stack([sharpen(pair) for pair in pairs])
    return Answer(task.outcome(question.samples, question.test, (coarse, fine)), {}, pictures(question, coarse))


def pictures(question: Question, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return input, truth and answer of some test samples, evenly over the split, in the contrast of the truth: uint8 RGB."""
    task: Any = question.task
    numbers = np.unique(np.linspace(0, len(question.test) - 1, NUM_PICTURES).round().astype(int))
    example = task.reader(question.samples, question.perturbation).example(question.test[numbers])
    sensor: Sensor = task.target_sensor(question.samples)
    rows = list(zip(example.guess, example.truth, predicted[numbers], example.is_known))
    shown = [[to_rgb(i, sensor.band_names, true) for i in (guess, true, found)] for guess, true, found, _ in rows]
    for images, (*_, is_known) in zip(shown, rows):
        images[0] = np.where(is_known[..., None], images[0], 1.0)
    stacks = [np.stack(images) for images in zip(*shown)]
    return {name: (stack * 255).astype(np.uint8) for name, stack in zip(("image", "true", "predicted"), stacks)}


def _batches(chosen: np.ndarray) -> list[np.ndarray]:
    return [chosen[first : first + BATCH_SIZE] for first in range(0, len(chosen), BATCH_SIZE)]
