"""What may be done to test tiles before a model sees them; training tiles are never changed."""

from typing import Protocol

import numpy as np

from jobs.evaluation.samples import TaskSamples
from pipeline.augment import SensorArrays


class Perturbation(Protocol):
    """A disturbance of a strength; an instance's repr says all that decides it."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    def samples(self, samples: TaskSamples) -> TaskSamples:
        """Return the samples with other dates or splits, or as they are."""
        ...

    def arrays(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        """Return tiles of one sensor, changed."""
        ...
