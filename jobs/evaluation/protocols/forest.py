"""Image statistics for maps: a random forest on each pixel's bands and what is around it, at every date, and their differences.

A pixel is described by its bands in deviations of the train split, and by mean and deviation of the 5 x 5 pixels around it. The
forest is scikit-learn's, 64 trees, grown on at most 40,000 training pixels, as many of each class as there are up to its part.
"""

import numpy as np
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from jobs.evaluation.cell import Answer
from jobs.evaluation.protocols._maps import judged, thresholded
from jobs.evaluation.question import Question
from jobs.evaluation.task import DENSE
from jobs.evaluation.tiles import TileReader
from pipeline.archive import Archive

KINDS = DENSE
ROLE = "pixels"
WINDOW_PX = 5
MAX_PIXELS = 40_000
NUM_TREES = 64
MIN_LEAF = 5
BATCH_SIZE = 16


def answer(question: Question) -> Answer:
    task, reader = question.label_task, TileReader(question.task.archive, question.samples)
    disturbed = TileReader(task.archive, question.samples, question.perturbation) if question.perturbation else reader
    forest = RandomForestClassifier(NUM_TREES, min_samples_leaf=MIN_LEAF, random_state=question.seed, n_jobs=1)
    forest.fit(*_drawn(question, reader))

    def probability(chosen: np.ndarray, is_test: bool) -> np.ndarray:
        features = described(task.archive, disturbed if is_test else reader, chosen)
        found = np.zeros((*features.shape[:3], len(task.classes)))
        found[..., forest.classes_.astype(int)] = forest.predict_proba(features.reshape(-1, features.shape[-1])).reshape(
            *features.shape[:3], -1
        )
        return found

    if task.kind == "change":
        return thresholded(question, lambda chosen, is_test: probability(chosen, is_test)[..., 1])
    return judged(question, lambda chosen: probability(chosen, True).argmax(-1).astype(np.uint8))


def _drawn(question: Question, reader: TileReader) -> tuple[np.ndarray, np.ndarray]:
    """Return training pixels (N, D) and their classes: from each batch of samples its share, class by class."""
    rng, task, train = np.random.default_rng(question.seed), question.label_task, question.train
    most = max(1, MAX_PIXELS // len(task.classes) * BATCH_SIZE // len(train))
    features, classes = [], []
    for first in range(0, len(train), BATCH_SIZE):
        chosen = train[first : first + BATCH_SIZE]
        described_NYXD, truth = described(task.archive, reader, chosen), task.targets(question.samples, chosen)
        for index in range(len(task.classes)):
            places = np.argwhere(truth.is_labelled & (truth.classes == index))
            places = places[rng.permutation(len(places))[:most]]
            features.append(described_NYXD[tuple(places.T)])
            classes.append(np.full(len(places), index))
    return np.concatenate(features), np.concatenate(classes)


def described(archive: Archive, reader: TileReader, chosen: np.ndarray) -> np.ndarray:
    """Return (N, Y, X, D) float32: of each sensor and date bands, local means and deviations, and last minus first of these.

    All sensors on the pixels of the finest; pixels that are not valid are at the mean.
    """
    statistics, parts = archive.read_statistics()["sensors"], []
    for name, arrays in reader.arrays(chosen).items():
        mean, std = (np.array(statistics[name][key], np.float32)[:, None, None] for key in ("mean", "std"))
        pixels = np.where(arrays.is_valid[:, :, None], (arrays.pixels - mean) / np.maximum(std, 1e-6), 0)
        local = ndimage.uniform_filter(pixels, (1, 1, 1, WINDOW_PX, WINDOW_PX))
        square = ndimage.uniform_filter(pixels**2, (1, 1, 1, WINDOW_PX, WINDOW_PX))
        each = np.concatenate([pixels, local, np.sqrt(np.maximum(square - local**2, 0))], 2)
        parts += [each[:, date] for date in range(each.shape[1])]
        parts += [each[:, -1] - each[:, 0]] if each.shape[1] > 1 else []
    side = max(part.shape[-1] for part in parts)
    fine = [part.repeat(side // part.shape[-1], -1).repeat(side // part.shape[-1], -2) for part in parts]
    return np.concatenate(fine, 1).transpose(0, 2, 3, 1).astype(np.float32)
