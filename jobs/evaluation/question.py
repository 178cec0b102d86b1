"""What a protocol is given."""

from dataclasses import dataclass

import numpy as np

from jobs.evaluation.contenders import Contender
from jobs.evaluation.features import FeatureKey, FeatureStore, combine
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.task import LabelTask, Task
from pipeline.archive import Archive
from pipeline.errors import InputError


@dataclass(frozen=True)
class TrainingConfig:
    """How protocols with a training loop train."""

    decoder_steps: int = 300
    """Optimiser steps of decoders on frozen maps, and of linear probes by SGD."""
    finetune_steps: int = 150
    """Optimiser steps of whole encoders; of the supervised baseline too."""
    batch_size: int = 32
    learning_rate: float = 1e-3
    """The largest; it rises and falls once."""
    layer_decay: float = 0.75
    """Of a trained encoder each layer learns so much slower than the one above it; random weights learn at one rate."""
    augment: bool = True
    """Training tiles are shown in the eight symmetries of the square, where pixels are read for every step."""

    def __post_init__(self) -> None:
        if min(self.decoder_steps, self.finetune_steps, self.batch_size) < 1:
            raise InputError("decoder_steps, finetune_steps and batch_size must be at least 1")
        if self.learning_rate <= 0 or not 0 < self.layer_decay <= 1:
            raise InputError(f"learning_rate {self.learning_rate:g} must be above 0, layer_decay {self.layer_decay:g} in (0, 1]")


@dataclass(frozen=True)
class Question:
    """One cell's task, samples and contender. `train` are the training samples whose labels may be seen; `val` all of val."""

    task: Task
    samples: TaskSamples
    contender: Contender
    train: np.ndarray
    seed: int
    features: FeatureStore
    training: TrainingConfig
    perturbation: Perturbation | None = None

    @property
    def val(self) -> np.ndarray:
        return self.samples.part("val")

    @property
    def test(self) -> np.ndarray:
        return self.samples.part("test")

    def key(self, has_maps: bool, is_test: bool) -> FeatureKey:
        """Return what this contender's features are kept under; those of test tiles are of the disturbed ones."""
        return feature_key(self.contender, self.seed, self.task.archive, has_maps, self.perturbation if is_test else None)

    def vectors(self, chosen: np.ndarray, is_test: bool = False) -> np.ndarray:
        """Return (N, D): what tiles are pooled to; of two dates both and their absolute difference, of more each."""
        return combine(self.features.pooled(self.key(False, is_test), self.samples, chosen))

    def maps(self, chosen: np.ndarray, is_test: bool = False) -> dict[str, list[np.ndarray]]:
        """Return sensor -> for each stage (N, T, y, x, D) float16."""
        return self.features.maps(self.key(True, is_test), self.samples, chosen)

    @property
    def label_task(self) -> LabelTask:
        """The task, for protocols that take labels only."""
        assert isinstance(self.task, LabelTask)
        return self.task


def feature_key(
    contender: Contender, seed: int, archive: Archive, has_maps: bool, perturbation: Perturbation | None = None
) -> FeatureKey:
    return FeatureKey(contender.maker(seed), contender.digest, archive, has_maps, perturbation, contender.num_dates)
