"""One comparison, and the parquet row and pictures it leaves in the run folder.

A cell's files carry its key, so a run that goes on knows what is done: a row that says no error is never made again. The row
is written last and whole.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.evaluation.metrics import NAMES, Outcome
from pipeline import storage

FOLDER = "cells"
REFUSED = "refused: "
"""Before the reason why an encoder would not take disturbed tiles: an answer, not a failure."""
SCORE = pa.struct([("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())])
NUMBERS = {"fraction": pa.float64(), "strength": pa.float64(), "seconds": pa.float64(), "seed": pa.int64()}
NUMBERS |= {"score": pa.float64(), "low": pa.float64(), "high": pa.float64()}
NUMBERS |= {name: pa.int64() for name in ("num_train", "num_val", "num_test", "num_units", "parameters")}


@dataclass(frozen=True)
class Cell:
    """What is compared: names, all of them; `fraction` of the training labels; `perturbation` of the test tiles, of a strength."""

    task: str
    archive: str
    sensors: str
    model: str
    protocol: str
    fraction: float
    seed: int
    perturbation: str = ""
    strength: float = 0.0

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        disturbed = f", {self.perturbation} {self.strength:g}" if self.perturbation else ""
        return (
            f"{self.task}, {self.model}, {self.protocol}, {self.sensors}, {self.fraction:g} of labels, seed {self.seed}{disturbed}"
        )


@dataclass(frozen=True)
class Row:
    """One line of the results. `scores` are all metrics as (metric, value, low, high); `error` says why there are none.

    The digests are SHA-256 of what decides them: the archive's content, the statistics that pixels are normalised with, which
    sample is in which split, and the weights. `labels_file` in the run folder lists the training labels that were seen;
    `interval_of` says whether places or samples were drawn anew for the interval, `num_units` how many there are.
    """

    task: str
    kind: str
    archive: str
    sensors: str
    model: str
    protocol: str
    fraction: float
    seed: int
    perturbation: str
    strength: float
    metric: str
    score: float
    low: float
    high: float
    scores: list[dict[str, Any]]
    interval_of: str
    num_units: int
    num_train: int
    num_val: int
    num_test: int
    labels_file: str
    data_digest: str
    normalisation_digest: str
    split_digest: str
    model_digest: str
    parameters: int | None
    settings: str
    versions: str
    seconds: float
    key: str
    error: str

    def all_scores(self) -> dict[str, float]:
        return {score["metric"]: score["value"] for score in self.scores}


SCHEMA = pa.schema([(f.name, NUMBERS.get(f.name, pa.list_(SCORE) if f.name == "scores" else pa.string())) for f in fields(Row)])


@dataclass(frozen=True)
class Answer:
    """What a protocol gives back: the outcome on the test samples, what it chose on val, and arrays to look at.

    pictures by name: `image` (N, Y, X, 3) uint8, `true` and `predicted` (N, Y, X), 255 where unlabelled, of a few test samples.
    """

    outcome: Outcome
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


def write(run_url: str, row: Row, answer: Answer | None) -> None:
    """Write a cell's arrays, then its row: `outcome/<name>` and `pictures/<name>` in one npz file."""
    if answer is not None:
        arrays: dict[str, Any] = {f"outcome/{f.name}": getattr(answer.outcome, f.name) for f in fields(answer.outcome)}
        arrays["kind"] = type(answer.outcome).__name__
        arrays |= {f"pictures/{name}": values for name, values in answer.pictures.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        storage.write_bytes(storage.join(run_url, FOLDER, f"{row.key}.npz"), buffer.getvalue())
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row)], SCHEMA), sink)
    storage.write_bytes(storage.join(run_url, FOLDER, f"{row.key}.parquet"), sink.getvalue())


def read(run_url: str) -> dict[str, Row]:
    """Return the rows of a run by key."""
    folder = storage.join(run_url, FOLDER)
    found = [name for name in storage.names(folder) if name.endswith(".parquet") and not name.startswith(".")]
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(storage.join(folder, name)))) for name in found]
    return {line["key"]: Row(**line) for table in tables for line in table.to_pylist()}


def read_arrays(run_url: str, key: str) -> dict[str, np.ndarray]:
    """Return what `write` kept beside a row; empty where the cell failed."""
    url = storage.join(run_url, FOLDER, f"{key}.npz")
    if not storage.exists(url):
        return {}
    with np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def read_outcome(run_url: str, row: Row) -> Outcome:
    """Return the answers of a finished cell."""
    arrays, prefix = read_arrays(run_url, row.key), "outcome/"
    made: dict[str, Any] = {name.removeprefix(prefix): found for name, found in arrays.items() if name.startswith(prefix)}
    made |= {name: tuple(made[name].tolist()) for name in NAMES if name in made}
    kinds = {kind.__name__: kind for kind in Outcome.__subclasses__()}
    return kinds[str(arrays["kind"])](**made)


def frame(rows: dict[str, Row]) -> pd.DataFrame:
    """Return rows as one table, in the order of their names."""
    table = pd.DataFrame([asdict(row) for row in rows.values()], columns=SCHEMA.names)
    return table.sort_values(["task", "sensors", "model", "protocol", "fraction", "perturbation", "strength", "seed"])
