"""Which cells an evaluation has, what each of them needs, and how one is answered and written down.

Baselines stand in every table: random initialisation and image statistics under each protocol that they can take part in,
supervised training from scratch, and for maps the protocols on pixels.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from cluster.run import versions
from jobs.evaluation import cell as cells
from jobs.evaluation.cell import REFUSED, Answer, Cell, Row
from jobs.evaluation.contenders import SCRATCH, Contender, normalisation_digest
from jobs.evaluation.features import FeatureKey, FeatureStore
from jobs.evaluation.fractions import train_labels
from jobs.evaluation.interval import intervals, units_of
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.protocols import load_protocol, protocol_names
from jobs.evaluation.question import Question, TrainingConfig, feature_key
from jobs.evaluation.restored import KINDS as RESTORATION
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.task import DENSE, Task
from models.errors import InputError as ModelInputError

SPLITS = ("train", "val", "test")
MIN_SAMPLES = 2
"""Of each split."""


@dataclass(frozen=True)
class Work:
    """A cell and what it is about."""

    cell: Cell
    task: Task
    samples: TaskSamples = field(repr=False)
    contender: Contender
    labels_file: str
    data_digest: str
    training: TrainingConfig
    perturbation: Perturbation | None = None

    @property
    def train(self) -> np.ndarray:
        return train_labels(self.samples, self.cell.fraction, self.cell.seed)

    def features(self) -> list[tuple[FeatureKey, np.ndarray]]:
        """Return what features are needed, of which samples."""
        role = load_protocol(self.cell.protocol).ROLE
        if role not in ("pooled", "maps"):
            return []
        clean, disturbed = np.flatnonzero(np.isin(self.samples.split, SPLITS)), self.samples.part("test")
        made = feature_key(self.contender, self.cell.seed, self.task.archive, role == "maps")
        if self.perturbation is None:
            return [(made, clean)]
        again = feature_key(self.contender, self.cell.seed, self.task.archive, role == "maps", self.perturbation)
        return [(made, clean), (again, disturbed)]


def protocols_of(kind: str, named: Sequence[str]) -> tuple[str, ...]:
    """Return the protocols among `named` that take tasks of this kind; by default linear, knn; decoder; restore."""
    usual = ("decoder",) if kind in DENSE else ("restore",) if kind in RESTORATION else ("linear", "knn")
    return tuple(name for name in named or usual if kind in load_protocol(name).KINDS)


def pairs_of(kind: str, named: Sequence[str], contenders: Sequence[Contender]) -> list[tuple[str, Contender]]:
    """Return which contender answers under which protocol, the baselines among them."""
    chosen = protocols_of(kind, named)
    found = []
    for name in protocol_names():
        protocol = load_protocol(name)
        for contender in contenders if kind in protocol.KINDS else ():
            is_baseline = protocol.ROLE == "pixels" or (protocol.ROLE == "tuned" and contender.title == SCRATCH)
            if protocol.ROLE in contender.roles and (name in chosen or is_baseline):
                found.append((name, contender))
    return found


def too_few(task: Task, samples: TaskSamples) -> str:
    """Return in words which splits lack samples, nothing if none does."""
    counts = {split: len(samples.part(split)) for split in SPLITS}
    if min(counts.values()) >= MIN_SAMPLES:
        return ""
    return f"label '{task.name}' of {samples.name} has {counts} samples by split; each split needs at least {MIN_SAMPLES}"


def answered(work: Work, run_url: str) -> Row:
    """Answer a cell and write it down; what goes wrong is written down too, and is no reason to stop the others."""
    torch.set_num_threads(1)
    started, store = time.monotonic(), FeatureStore(run_url)
    question = Question(
        work.task,
        work.samples,
        work.contender,
        work.train,
        work.cell.seed,
        store,
        work.training,
        work.perturbation,
    )
    refusals = [reason for key, _ in work.features() if key.perturbation is not None and (reason := store.refusal(key))]
    try:
        if refusals:
            raise ModelInputError(refusals[0])
        answer = load_protocol(work.cell.protocol).answer(question)
        row = _row(work, answer, time.monotonic() - started)
    except ModelInputError as error:
        said = REFUSED if work.perturbation is not None else ""
        answer, row = None, failed(work, f"{said}{error}", time.monotonic() - started)
    except Exception as error:  # whatever a cell fails of is what its row says
        answer, row = None, failed(work, " ".join(f"{type(error).__name__}: {error}".split()), time.monotonic() - started)
    cells.write(run_url, row, answer)
    return row


def failed(work: Work, reason: str, seconds: float) -> Row:
    return _row(work, None, seconds, reason)


def _row(work: Work, answer: Answer | None, seconds: float, error: str = "") -> Row:
    nothing = float("nan")
    scores = answer.outcome.scores() if answer else {}
    around = intervals(answer.outcome, work.cell.seed) if answer else {}
    low, high = around.get(work.task.metric, (nothing, nothing))
    unit, units = units_of(answer.outcome) if answer else ("", [])
    sensors = work.samples.sensors
    return Row(
        **asdict(work.cell),
        kind=work.task.kind,
        metric=work.task.metric,
        score=scores.get(work.task.metric, nothing),
        low=low,
        high=high,
        scores=[{"metric": m, "value": v, "low": around[m][0], "high": around[m][1]} for m, v in scores.items()],
        interval_of=unit,
        num_units=len(units),
        num_train=len(work.train),
        num_val=len(work.samples.part("val")),
        num_test=len(work.samples.part("test")),
        labels_file=work.labels_file,
        data_digest=work.data_digest,
        normalisation_digest=normalisation_digest(work.contender, work.task.archive, sensors),
        split_digest=split_digest(work.samples),
        model_digest=work.contender.digest,
        parameters=work.contender.parameters,
        settings=json.dumps({**asdict(work.training), **(answer.settings if answer else {})}, default=float),
        versions=json.dumps(versions()),
        seconds=seconds,
        key=work.cell.key,
        error=error,
    )


def split_digest(samples: TaskSamples) -> str:
    """Return the SHA-256 of which site is in which split."""
    lines = sorted(f"{shard} {site} {split}" for shard, site, split in zip(samples.tiles.shard, samples.tiles.site, samples.split))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
