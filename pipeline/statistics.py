"""Per-band statistics over valid pixels: counted when a shard is written, kept in it, merged without reading pixels again.

Means and deviations merge exactly (Chan, Golub & LeVeque 1979); quantiles come from one fixed fine histogram over the
sensor's valid range, so that any two parts merge by addition. All in physical units.
"""

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.sensors import Sensor

NUM_BINS = 4096


@dataclass(frozen=True)
class SensorStatistics:
    """`count` valid pixels; (band,): mean, summed squared deviation, the same about each tile's own mean, extremes.

    `histogram` (band, bin) counts over `valid_range`; what lies outside is in the first or last bin.
    """

    count: int
    mean: np.ndarray
    deviation: np.ndarray
    within: np.ndarray
    low: np.ndarray
    high: np.ndarray
    histogram: np.ndarray

    def merge(self, other: "SensorStatistics") -> "SensorStatistics":
        """Return the statistics of both parts' pixels together."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        return SensorStatistics(
            count,
            self.mean + delta * (other.count / count),
            self.deviation + other.deviation + delta**2 * (self.count * other.count / count),
            self.within + other.within,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.histogram + other.histogram,
        )


def statistics_of(sensor: Sensor, tiles: Iterable[tuple[np.ndarray, np.ndarray]]) -> SensorStatistics:
    """Return the statistics of tiles given as stored pixels (band, y, x) and validity (y, x)."""
    num_bands = len(sensor.bands)
    zero, none = np.zeros(num_bands), np.full(num_bands, np.nan)
    total = SensorStatistics(0, zero, zero, zero, none, none, np.zeros((num_bands, NUM_BINS), np.int64))
    for stored, is_valid in tiles:
        if is_valid.any():
            total = total.merge(_of_tile(sensor, sensor.to_physical(stored[:, is_valid]).astype(np.float64)))
    return total


def _of_tile(sensor: Sensor, pixels: np.ndarray) -> SensorStatistics:
    low, high = sensor.valid_range
    mean = pixels.mean(axis=1)
    deviation = ((pixels - mean[:, None]) ** 2).sum(axis=1)
    bins = np.clip((pixels - low) * (NUM_BINS / (high - low)), 0, NUM_BINS - 1).astype(np.int64)
    histogram = np.stack([np.bincount(band, minlength=NUM_BINS) for band in bins])
    return SensorStatistics(pixels.shape[1], mean, deviation, deviation, pixels.min(axis=1), pixels.max(axis=1), histogram)


def quantiles(statistics: SensorStatistics, valid_range: tuple[float, float], wanted: tuple[float, ...]) -> np.ndarray:
    """Return quantiles (quantile, band), right to one bin of the histogram, and never outside the extremes."""
    edges = np.linspace(*valid_range, NUM_BINS + 1)
    shares = np.array(wanted) * statistics.count
    found = [np.interp(shares, np.concatenate([[0], np.cumsum(band)]), edges) for band in statistics.histogram]
    return np.clip(np.stack(found, axis=1), statistics.low, statistics.high)


def summarise(statistics: SensorStatistics, sensor: Sensor) -> dict[str, Any]:
    """Return what `statistics.json` says of one sensor: lists over `bands`, physical units."""
    low, median, high = quantiles(statistics, sensor.valid_range, (0.02, 0.5, 0.98))
    return {
        "bands": list(sensor.band_names),
        "count": statistics.count,
        "mean": statistics.mean.tolist(),
        "std": np.sqrt(statistics.deviation / statistics.count).tolist(),
        "std_within_tile": np.sqrt(statistics.within / statistics.count).tolist(),
        "min": statistics.low.tolist(),
        "max": statistics.high.tolist(),
        "percentile_2": low.tolist(),
        "median": median.tolist(),
        "percentile_98": high.tolist(),
    }


def write_table(by_sensor: dict[str, SensorStatistics]) -> bytes:
    """Return Parquet with one row per sensor and band."""
    frames = []
    for name, statistics in by_sensor.items():
        columns = {key: list(value) if isinstance(value, np.ndarray) else value for key, value in asdict(statistics).items()}
        frames.append(pd.DataFrame({"sensor": name, **columns}))
    buffer = io.BytesIO()
    pd.concat(frames).to_parquet(buffer, compression="zstd", index=False)
    return buffer.getvalue()


def read_table(content: bytes) -> dict[str, SensorStatistics]:
    """Read what `write_table` returned."""
    found = {}
    for name, rows in pd.read_parquet(io.BytesIO(content)).groupby("sensor"):
        columns = {key: rows[key].to_numpy() for key in ("mean", "deviation", "within", "low", "high")}
        found[str(name)] = SensorStatistics(int(rows["count"].iloc[0]), **columns, histogram=np.stack(rows["histogram"].tolist()))
    return found
