"""Which tiles of a site make one sample, which sensor sets an archive offers, and augmentation that any sensor allows."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.sensors import Sensor

SensorSet = tuple[str, ...]


def sensor_sets(catalog: pd.DataFrame, sensors: dict[str, Sensor]) -> list[SensorSet]:
    """Return the default sensor sets: at every site one sensor paired with each other one, or alone.

    The one that all others are paired with measures reflectance, if any does, and has most tiles there.
    """
    counts = catalog.groupby(["site", "sensor"]).size().unstack(fill_value=0)
    found: Counter[SensorSet] = Counter()
    for present, group in counts.groupby(counts.gt(0).apply(tuple, axis=1)):
        names = [name for name, is_present in zip(counts.columns, present) if is_present]
        totals = group[names].sum()
        hub = max(names, key=lambda name: (sensors[name].quantity.endswith("reflectance"), totals[name], name))
        for other in [name for name in names if name != hub] or [None]:
            found[(hub, other) if other else (hub,)] += len(group)
    # A pair at a few sites only, left by gaps at a swath's edge, would hardly fill a batch.
    return sorted(s for s, sites in found.items() if sites >= min(16, max(found.values())))


def samples(catalog: pd.DataFrame, sensor_set: SensorSet) -> pd.DataFrame:
    """Return one row per sample of `sensor_set`: shard, site, and for each sensor the tile's row in the shard.

    At each site every tile of the sensor with fewest dates is paired with the tiles of the others nearest in time
    (nearest in order where a time is unknown), so a pass shows scarce tiles once. Sites that lack a sensor give nothing.
    """
    chosen = catalog[catalog["sensor"].isin(sensor_set)]
    complete = chosen.groupby("site")["sensor"].nunique().eq(len(sensor_set))
    chosen = chosen[chosen["site"].map(complete)]
    rows = []
    for (shard, site), group in chosen.groupby(["shard", "site"], sort=True):
        by_sensor = {name: part.sort_values("order") for name, part in group.groupby("sensor")}
        anchor = min(sensor_set, key=lambda name: (len(by_sensor[name]), sensor_set.index(name)))
        for tile in by_sensor[anchor].itertuples():
            nearest = {name: _nearest(part, tile) for name, part in by_sensor.items()}
            rows.append({"shard": shard, "site": site, "lon_deg": tile.lon_deg, "lat_deg": tile.lat_deg, **nearest})
    if not rows:
        raise InputError(f"no site has all of {', '.join(sensor_set)}; the archive has {sorted(catalog['sensor'].unique())}")
    return pd.DataFrame(rows)


def _nearest(part: pd.DataFrame, tile: Any) -> int:
    if pd.notna(tile.time) and part["time"].notna().all():
        distance = (part["time"] - tile.time).abs()
    else:
        distance = (part["order"] - tile.order).abs()
    return int(part["row"].iloc[int(distance.argmin())])


def dihedral(image: np.ndarray, symmetry: int) -> np.ndarray:
    """Return `image` (..., y, x) under one of the eight symmetries of the square, 0 being the identity."""
    turned = np.rot90(image, symmetry % 4, axes=(-2, -1))
    return turned[..., ::-1] if symmetry >= 4 else turned
