"""Nearest embeddings by cosine, with faiss, however many there are.

Embeddings are compared about their mean: what all have in common says nothing. Up to EXACT_UP_TO rows are compared one by one; more
are put into cells of which the nearest are looked through, a byte for each value. An index is made once and kept beside its parts.
"""

import importlib.util
import io
import math
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError

EXACT_UP_TO = 200_000
TRAINED_ON = 100_000
CELLS_SEARCHED = 32


@dataclass(frozen=True)
class Index:
    """The embeddings of one sensor in GeoParquet parts; `first` (P + 1,) numbers the sensor's first row of each part."""

    folder: str
    sensor: str
    parts: list[str]
    first: np.ndarray
    centre: np.ndarray
    faiss: Any

    def nearest(self, query: np.ndarray, count: int) -> list[tuple[int, float]]:
        """Return row numbers and cosines, the nearest first."""
        similarity, rows = self.faiss.search(unit(query[None], self.centre), min(count, int(self.first[-1])))
        return [(int(row), float(cosine)) for row, cosine in zip(rows[0], similarity[0]) if row >= 0]

    def row(self, number: int) -> gpd.GeoDataFrame:
        """Return one row, with its embedding."""
        part = int(np.searchsorted(self.first, number, "right")) - 1
        rows = read_part(storage.join(self.folder, self.parts[part]))
        return rows[rows["sensor"] == self.sensor].iloc[[number - int(self.first[part])]]


def unit(embeddings: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return (N, D) about the centre, of length 1."""
    centred = embeddings.astype(np.float32) - centre
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def read_part(url: str) -> gpd.GeoDataFrame:
    return gpd.read_parquet(io.BytesIO(storage.read_bytes(url)))


def embeddings_of(url: str, sensor: str) -> np.ndarray:
    """Return (N, D) of one sensor's rows, in their order, without reading the other columns."""
    table = pq.read_table(io.BytesIO(storage.read_bytes(url)), columns=["sensor", "embedding"])
    chosen = np.asarray(table["sensor"]) == sensor
    values = table["embedding"].combine_chunks()
    return np.asarray(values.flatten()).reshape(len(table), -1)[chosen]


def require_faiss() -> None:
    if importlib.util.find_spec("faiss") is None:
        raise InputError("search needs faiss; pip install 'terraloom[search]'")


def open_index(folder: str, sensor: str, kept: str) -> Index:
    """Return the index of one sensor's rows in the parts under `folder`; made anew unless `kept` has one of the same parts."""
    require_faiss()
    import faiss

    sizes = storage.files(folder)
    facts_url, index_url = storage.join(kept, f"{sensor}.npz"), storage.join(kept, f"{sensor}.faiss")
    parts, stamp = [*sizes], repr(sorted(sizes.items()))
    if storage.exists(facts_url) and storage.exists(index_url):
        with np.load(io.BytesIO(storage.read_bytes(facts_url)), allow_pickle=False) as found:
            if str(found["stamp"]) == stamp:
                stored = faiss.deserialize_index(np.frombuffer(storage.read_bytes(index_url), np.uint8))
                return Index(folder, sensor, parts, found["first"], found["centre"], stored)
    first, centre = _counted(folder, parts, sensor)
    made = _filled(folder, parts, sensor, int(first[-1]), centre)
    storage.write_bytes(index_url, faiss.serialize_index(made).tobytes())
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, first=first, centre=centre)
    storage.write_bytes(facts_url, buffer.getvalue())
    return Index(folder, sensor, parts, first, centre, made)


def _counted(folder: str, parts: list[str], sensor: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the first row of each part, and the mean embedding."""
    counts, total = [0], 0.0
    for part in parts:
        found = embeddings_of(storage.join(folder, part), sensor)
        counts.append(len(found))
        total = total + found.sum(0, dtype=np.float64)
    if not sum(counts):
        raise InputError(f"'{folder}' has no row of {sensor}; give another sensor, or embed it first")
    return np.cumsum(counts), (np.asarray(total) / sum(counts)).astype(np.float32)


def _filled(folder: str, parts: list[str], sensor: str, count: int, centre: np.ndarray) -> Any:
    import faiss

    made: Any
    if count <= EXACT_UP_TO:
        made = faiss.IndexFlatIP(len(centre))
    else:
        made = faiss.index_factory(len(centre), f"IVF{4 * math.isqrt(count)},SQ8", faiss.METRIC_INNER_PRODUCT)
        made.train(_sample(folder, parts, sensor, count, centre))
        made.nprobe = CELLS_SEARCHED
    for part in parts:
        made.add(unit(embeddings_of(storage.join(folder, part), sensor), centre))
    return made


def _sample(folder: str, parts: list[str], sensor: str, count: int, centre: np.ndarray) -> np.ndarray:
    every = max(1, count // TRAINED_ON)
    return np.concatenate([unit(embeddings_of(storage.join(folder, part), sensor)[::every], centre) for part in parts])
