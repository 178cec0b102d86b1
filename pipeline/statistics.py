"""Per-band statistics over valid pixels, shard by shard, merged exactly (Chan, Golub & LeVeque 1979)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.archive import Archive

SAMPLED_PIXELS = 128


@dataclass
class Moments:
    """Count, mean and summed squared deviation (band,), the same about each tile's own mean, extremes, and a sample of

    pixels (pixel, band) for quantiles."""

    count: int
    mean: np.ndarray
    deviation: np.ndarray
    within: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray

    def merge(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.deviation + other.deviation + delta**2 * (self.count * other.count / count),
            self.within + other.within,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.concatenate([self.sample, other.sample]),
        )


def shard_moments(archive: Archive, shard: str, sensor_name: str, num_tiles: int) -> Moments | None:
    """Return the moments of one sensor in one shard in physical units; None where no pixel is valid."""
    sensor = archive.sensors[sensor_name]
    total: Moments | None = None
    for start in range(0, num_tiles, 32):
        stored, is_valid = archive.read(shard, sensor_name, np.arange(start, min(start + 32, num_tiles)))
        for tile, valid in zip(sensor.to_physical(stored).transpose(0, 2, 3, 1), is_valid):
            if valid.any():
                part = _tile_moments(tile[valid].astype(np.float64))
                total = part if total is None else total.merge(part)
    return total


def _tile_moments(pixels: np.ndarray) -> Moments:
    mean = pixels.mean(axis=0)
    deviation = ((pixels - mean) ** 2).sum(axis=0)
    sample = pixels[:: max(1, len(pixels) // SAMPLED_PIXELS)]
    return Moments(len(pixels), mean, deviation, deviation, pixels.min(axis=0), pixels.max(axis=0), sample)


def summarise(moments: Moments, bands: tuple[str, ...]) -> dict[str, Any]:
    """Return what `statistics.json` says of one sensor: lists over `bands`, physical units."""
    low, high = np.percentile(moments.sample, [2, 98], axis=0)
    return {
        "bands": list(bands),
        "count": int(moments.count),
        "mean": moments.mean.tolist(),
        "std": np.sqrt(moments.deviation / moments.count).tolist(),
        "std_within_tile": np.sqrt(moments.within / moments.count).tolist(),
        "min": moments.low.tolist(),
        "max": moments.high.tolist(),
        "percentile_2": low.tolist(),
        "percentile_98": high.tolist(),
    }
