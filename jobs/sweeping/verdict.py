"""Which arm is better, in words: paired differences of probes, answer by answer, with intervals over seeds and samples; of
held-out losses, whose samples are the same for all, seed by seed.

Each resample draws seeds and places (`evaluation.interval`) with replacement, for both arms and all quizzes alike: what makes
a place hard for both is no uncertainty, and one encoder answers all quizzes of its seed. With three seeds an interval over
them is rough: the true one is wider.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from jobs.evaluation import interval
from jobs.evaluation.metrics import Classified
from jobs.sweeping.quiz import Answers

DRAWS = 400
OfSeeds = Mapping[str, Sequence[Answers]]
"""Answers by quiz, of each seed."""


@dataclass(frozen=True)
class Gain:
    """How much larger the mean score over quizzes is, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_told(self) -> bool:
        return self.low > 0 or self.high < 0

    def words(self) -> str:
        kind = "not told apart" if not self.is_told else "better" if self.value > 0 else "worse"
        return f"{kind} ({self.value:+.3f}, {self.low:+.3f} to {self.high:+.3f})"


def gain(own: OfSeeds, other: OfSeeds) -> Gain:
    """Return by how much `own` scores better than `other` in the mean over quizzes and seeds, which both have."""
    names = sorted(own.keys() & other.keys())
    num_seeds = max(len(answers) for of in (own, other) for answers in of.values())
    seeds = np.random.default_rng(0).integers(num_seeds, size=(DRAWS, num_seeds))
    values, draws = [], np.zeros((len(names), DRAWS))
    for number, name in enumerate(names):
        mine, theirs = own[name], other[name]
        pairs = [(mine[i % len(mine)], theirs[i % len(theirs)]) for i in range(num_seeds)]
        values.append(np.mean([a.score - b.score for a, b in pairs]))
        for draw, chosen in enumerate(interval.draws(mine[0].outcome, 0, DRAWS)):
            draws[number, draw] = np.mean([_score(pairs[i][0], chosen) - _score(pairs[i][1], chosen) for i in seeds[draw]])
    low, high = np.nanpercentile(draws.mean(0), interval.BOUNDS)
    return Gain(float(np.mean(values)), float(low), float(high))


def lead(losses: Sequence[float], other: Sequence[float]) -> Gain | None:
    """Return by how much `losses` are lower than `other`, seed by seed, with Student's interval; None for fewer than two seeds."""
    leads = np.subtract(other, losses)
    if len(leads) < 2:
        return None
    value = float(leads.mean())
    half = float(student.ppf(interval.BOUNDS[1] / 100, len(leads) - 1) * leads.std(ddof=1) / np.sqrt(len(leads)))
    return Gain(value, value - half, value + half)


def _score(answers: Answers, chosen: np.ndarray) -> float:
    outcome = answers.outcome
    if isinstance(outcome, Classified):  # accuracy, without a confusion matrix for each resample
        return float((outcome.labels[chosen] == outcome.predicted[chosen]).mean())
    return Answers(outcome.take(chosen)).score
