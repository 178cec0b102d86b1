"""What goes wrong with tiles in the field, in steps: the perturbations whose scores make a curve.

Decides what each is and of which strengths. All are pure: the same tiles and generator give the same result. Training tiles
stay as they are. A score under a perturbation is compared with that of strength 0, the same cell without.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans

from jobs.evaluation.restored import KINDS as RESTORATION
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.task import DENSE
from pipeline.archive import Archive
from pipeline.augment import SensorArrays, turn
from pipeline.errors import InputError

NUM_REGIONS = 4


@dataclass(frozen=True)
class Disturbance:
    """Nothing happens; kinds override what they change. `sensor`: whose tiles are changed, others stay; empty: all."""

    strength: float
    sensor: str = ""
    kind: ClassVar[str] = ""
    strengths: ClassVar[tuple[float, ...]] = ()
    unit: ClassVar[str] = ""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.sensor}".strip()

    def samples(self, samples: TaskSamples) -> TaskSamples:
        """Return the samples with other dates or splits, or as they are."""
        return samples

    def arrays(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        """Return tiles of one sensor, changed."""
        return self.changed(arrays, rng) if self.sensor in ("", arrays.sensor.name) else arrays

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        return arrays


@dataclass(frozen=True)
class Removed(Disturbance):
    """A share of the tiles is absent."""

    kind, strengths, unit = "removed", (0.25, 0.5, 1.0), "share of tiles"

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        # Of N tiles exactly the share, so that 1 is all of them.
        shape = arrays.is_present.shape
        order = rng.permutation(arrays.is_present.size).reshape(shape)
        is_kept = order >= round(self.strength * order.size)
        return replace(arrays, is_present=arrays.is_present & is_kept, is_valid=arrays.is_valid & is_kept[..., None, None])


@dataclass(frozen=True)
class Noise(Disturbance):
    """Gaussian noise; of strength 1 it is as strong as each band's own variation in its tile."""

    kind, strengths, unit = "noise", (0.1, 0.3, 1.0), "of a band's deviation"

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        is_valid = arrays.is_valid[:, :, None]
        count = np.maximum(is_valid.sum((-2, -1), keepdims=True), 1)
        level = np.where(is_valid, arrays.pixels, 0).sum((-2, -1), keepdims=True) / count
        variance = (np.where(is_valid, arrays.pixels - level, 0) ** 2).sum((-2, -1), keepdims=True) / count
        noise = rng.standard_normal(arrays.pixels.shape, np.float32)
        return replace(arrays, pixels=(arrays.pixels + self.strength * np.sqrt(variance) * noise).astype(np.float32))


@dataclass(frozen=True)
class DeadBands(Disturbance):
    """So many bands of each tile, drawn anew, deliver a stored zero."""

    kind, strengths, unit = "dead bands", (1.0, 2.0, 4.0), "bands"

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        samples, dates, bands = arrays.pixels.shape[:3]
        order = rng.permuted(np.tile(np.arange(bands), (samples, dates, 1)), axis=-1)
        is_dead = (order < min(self.strength, bands))[..., None, None]
        return replace(arrays, pixels=np.where(is_dead, np.float32(arrays.sensor.offset), arrays.pixels))


@dataclass(frozen=True)
class Shifted(Disturbance):
    """The content lies so many pixels further down and right; what comes in from outside is not valid."""

    kind, strengths, unit = "shifted", (1.0, 2.0, 4.0, 8.0), "pixels"

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        step = round(self.strength)
        pixels, is_valid = (np.roll(a, (step, step), (-2, -1)) for a in (arrays.pixels, arrays.is_valid))
        is_valid[..., :step, :] = False
        is_valid[..., :step] = False
        return replace(arrays, pixels=pixels, is_valid=is_valid)


@dataclass(frozen=True)
class WrongScale(Disturbance):
    """Values are so many times what they should be. An encoder must refuse what cannot be its sensor's."""

    kind, strengths, unit = "wrong scale", (0.0001, 0.5, 0.9, 1.1, 2.0, 10000.0), "times"

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        return replace(arrays, pixels=arrays.pixels * np.float32(self.strength))


@dataclass(frozen=True)
class Turned(Disturbance):
    """Tiles are turned to the left, by quarters."""

    kind, strengths, unit = "turned", (90.0, 180.0, 270.0), "degrees"

    def changed(self, arrays: SensorArrays, rng: np.random.Generator) -> SensorArrays:
        return turn(arrays, np.full(len(arrays.pixels), round(self.strength / 90)))


@dataclass(frozen=True)
class OtherDate(Disturbance):
    """Test tiles of one date are replaced by those of the same site and sensor so many dates away; sites without are left out."""

    archive: Archive = field(repr=False, compare=False, kw_only=True)
    kind, strengths, unit = "other date", (1.0, 2.0), "dates away"

    def samples(self, samples: TaskSamples) -> TaskSamples:
        rows = {name: found.copy() for name, found in samples.tiles.rows.items()}
        days = {name: found.copy() for name, found in samples.tiles.time_days.items()}
        catalog = self.archive.tiles(sorted(set(samples.tiles.shard)))
        is_test = samples.split == "test"
        is_kept = np.ones(len(samples), bool)
        for name in rows:
            if rows[name].shape[1] != 1 or self.sensor not in ("", name):
                continue
            others = _others(catalog[catalog["sensor"] == name], round(self.strength))
            for n in np.flatnonzero(is_test):
                row = others.get((samples.tiles.shard[n], int(rows[name][n, 0])))
                is_kept[n] &= row is not None
                rows[name][n, 0] = rows[name][n, 0] if row is None else row
        if not (is_kept & is_test).any():
            raise InputError(f"no test site has a tile {self.strength:g} dates away; leave this perturbation out")
        changed = replace(samples, tiles=replace(samples.tiles, rows=rows, time_days=days))
        return changed.of_places(is_kept)


def _others(tiles: pd.DataFrame, step: int) -> dict[tuple[str, int], int]:
    """Return (shard, row) -> the row of the date `step` later, or earlier where there is none later."""
    found = {}
    for (shard, _), dates in tiles.sort_values("order").groupby(["shard", "site"]):
        rows = dates["row"].to_numpy()
        for at, row in enumerate(rows):
            other = at + step if at + step < len(rows) else at - step
            if other >= 0:
                found[shard, int(row)] = int(rows[other])
    return found


@dataclass(frozen=True)
class OtherRegion(Disturbance):
    """Only test places of region number `strength` are asked, and no label of that region is seen in training."""

    kind, unit = "other region", "number of the region"
    strengths = tuple(map(float, range(1, NUM_REGIONS + 1)))

    def samples(self, samples: TaskSamples) -> TaskSamples:
        is_inside = regions(samples.tiles.lonlat_deg, samples.place) == round(self.strength) - 1
        kept = samples.of_places(np.where(samples.split == "test", is_inside, ~is_inside))
        if missing := [split for split in ("train", "val", "test") if not (kept.split == split).any()]:
            raise InputError(f"region {self.strength:g} of {NUM_REGIONS} leaves no sample in {', '.join(missing)}; leave it out")
        return kept


def regions(lonlat_deg: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return each sample's region, 0 to 3: places near each other on the globe; without coordinates, places in turn by name."""
    names, inverse = np.unique(place, return_inverse=True)
    centre = np.radians([lonlat_deg[inverse == number].mean(0) for number in range(len(names))])
    if len(names) < NUM_REGIONS or np.isnan(centre).any():
        return (np.arange(len(names)) % NUM_REGIONS)[inverse]
    (lon, lat), clusters = centre.T, KMeans(NUM_REGIONS, n_init=10, random_state=0)
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    return clusters.fit_predict(xyz)[inverse]


CHANGES: tuple[type[Disturbance], ...] = (Removed, Noise, DeadBands, Shifted, WrongScale)
"""Of one sensor at a time."""


def suite(samples: TaskSamples, archive: Archive, kind: str) -> list[Disturbance]:
    """Return all perturbations, in all strengths, that mean something for samples of a task of `kind`."""
    found: list[Disturbance] = []
    for sensor in samples.sensors:
        for change in CHANGES:
            found += [change(strength, sensor) for strength in _fitting(change, archive, sensor)]
    is_of_a_date = kind not in RESTORATION and all(rows.shape[1] == 1 for rows in samples.tiles.rows.values())
    builders: list[Callable[[], list[Disturbance]]] = [
        # The truth of a map or an image would have to be turned too.
        lambda: [] if kind in (*DENSE, *RESTORATION) else [Turned(strength) for strength in Turned.strengths],
        lambda: [OtherDate(strength, archive=archive) for strength in OtherDate.strengths] if is_of_a_date else [],
        lambda: [OtherRegion(strength) for strength in OtherRegion.strengths],
    ]
    for build in builders:
        for disturbance in build():
            try:
                disturbance.samples(samples)
            except InputError:  # the data have no such date or region
                continue
            found.append(disturbance)
    return found


def _fitting(change: type[Disturbance], archive: Archive, sensor: str) -> tuple[float, ...]:
    if change is DeadBands:
        return tuple(s for s in change.strengths if s < len(archive.sensors[sensor].bands))
    return change.strengths
