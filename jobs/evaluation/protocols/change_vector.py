"""Image statistics for change: the length of the difference of two dates' bands, in deviations of the train split.

Change vector analysis (Malila 1980), the mean over 5 x 5 pixels; from which length a pixel has changed is what gives the best F1
on the training samples.
"""

import numpy as np
from scipy import ndimage

from jobs.evaluation.cell import Answer
from jobs.evaluation.metrics import counts_of, f1_of
from jobs.evaluation.protocols._maps import batches, judged
from jobs.evaluation.question import Question
from jobs.evaluation.tiles import TileReader

KINDS = ("change",)
ROLE = "pixels"
WINDOW_PX = 5
PERCENTILES = np.arange(50, 100)
"""Of the lengths of training pixels: what may be the threshold."""


def answer(question: Question) -> Answer:
    reader = TileReader(question.task.archive, question.samples)
    disturbed = TileReader(question.task.archive, question.samples, question.perturbation) if question.perturbation else reader
    length = np.concatenate([lengths(question, reader, chosen) for chosen in batches(question.train)])
    truth = question.label_task.targets(question.samples, question.train)
    candidates = np.percentile(length, PERCENTILES)
    counts = [counts_of(truth.classes, (length >= t).astype(np.uint8), truth.is_labelled, 2).sum(0) for t in candidates]
    threshold = float(candidates[np.argmax([np.nan_to_num(f1_of(found)[1]) for found in counts])])
    return judged(
        question, lambda chosen: (lengths(question, disturbed, chosen) >= threshold).astype(np.uint8), threshold=threshold
    )


def lengths(question: Question, reader: TileReader, chosen: np.ndarray) -> np.ndarray:
    """Return (N, Y, X) float32, on the pixels of the sensor that is asked about; 0 where a date is not valid."""
    task = question.label_task
    side = task.archive.sensors[task.target_sensor(question.samples)].tile_shape(task.archive.grid.site_size_m)[0]
    statistics = task.archive.read_statistics()["sensors"]
    total = np.zeros((len(chosen), side, side), np.float32)
    for name, arrays in reader.arrays(chosen).items():
        std = np.maximum(np.array(statistics[name]["std"], np.float32), 1e-6)[:, None, None]
        change = ((arrays.pixels[:, -1] - arrays.pixels[:, 0]) / std) ** 2
        is_valid = arrays.is_valid[:, -1] & arrays.is_valid[:, 0]
        square = np.where(is_valid, change.mean(1), 0)
        fine = side // square.shape[-1]
        total += square.repeat(fine, -1).repeat(fine, -2)
    return ndimage.uniform_filter(np.sqrt(total), (1, WINDOW_PX, WINDOW_PX))
