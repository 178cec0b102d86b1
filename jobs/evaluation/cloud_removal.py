"""Cloud removal: a clear image of a site from a cloudy one, and from radar where there is any.

Decides which tiles are input and truth. Cloudy are tiles with the label 'cloudy', or of which 5 % or more is cloud by the
catalog (`coregister` takes cloud for gaps). The truth is the site's last clear tile. A site without a cloudy tile has real clouds
laid over it, of tiles that have no clear twin, if the archive has any.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from jobs.evaluation.clouds import CloudPattern, patterns
from jobs.evaluation.image_metrics import differences, scaled
from jobs.evaluation.metrics import Outcome
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.restored import (
    CLOUD_REMOVAL,
    OTHER,
    PATTERN,
    SYMMETRY,
    TARGET,
    Example,
    disturbed,
    restoration_samples,
    restored,
    with_rows,
)
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.tiles import TileReader
from pipeline.archive import Archive
from pipeline.augment import SensorArrays, is_reflectance
from pipeline.sensors import Sensor
from pipeline.units import BACKSCATTER

CLOUDY_FRACTION = 0.05
CLIP = (0.0, 1.0)
"""Of reflectance, as SEN12MS-CR is scored: files of 0 to 10000."""
PATTERN_SPLITS = ("train", "train", "val", "test")
"""Where patterns go, in turn: those laid over test tiles are never trained on."""


@dataclass(frozen=True)
class CloudRemoval:
    """The task of one archive."""

    archive: Archive
    name: str = "cloud_removal"
    kind: str = CLOUD_REMOVAL
    metric: str = "PSNR"
    classes: tuple[str, ...] = ()

    def samples(self, sensors: frozenset[str]) -> list[TaskSamples]:
        """Return samples of each reflectance sensor alone, and together with each radar."""
        found, catalog = [], self.archive.catalog()
        known = {name: self.archive.sensors[name] for name in sorted(sensors & self.archive.sensors.keys())}
        radars = [name for name, sensor in known.items() if sensor.quantity in BACKSCATTER]
        for name in (name for name, sensor in known.items() if is_reflectance(sensor)):
            pairs = self._pairs(catalog[catalog["sensor"] == name], name)
            found += [restoration_samples({name: pairs})] if len(pairs) else []
            for radar in radars:
                tiles = catalog[catalog["sensor"] == radar].drop_duplicates("site").set_index("site", drop=False)
                both = pairs[pairs["site"].isin(tiles.index)]
                found += [restoration_samples({name: both, radar: tiles.loc[both["site"]]})] if len(both) else []
        return found

    def _pairs(self, tiles: pd.DataFrame, sensor: str) -> pd.DataFrame:
        """Return the catalog row of each site's input tile, with the columns of `labels`."""
        is_cloudy = _is_cloudy(tiles)
        clear = tiles[~is_cloudy].sort_values(["site", "order"])
        last = clear.drop_duplicates("site", keep="last").set_index("site")["row"]
        before = clear[clear.duplicated("site", keep="last")].drop_duplicates("site", keep="last").set_index("site")["row"]
        cloudy = (
            tiles[is_cloudy & tiles["site"].isin(last.index)].sort_values("cloud_fraction").drop_duplicates("site", keep="last")
        )
        rest = clear.drop_duplicates("site", keep="last")
        rest = rest[~rest["site"].isin(cloudy["site"])].assign(pattern=-1, symmetry=-1)
        for split, group in rest.groupby("split"):
            if mine := self._patterns_of(sensor, str(split)):
                rng = np.random.default_rng(len(group))
                rest.loc[group.index, "pattern"] = rng.choice(mine, len(group))
                rest.loc[group.index, "symmetry"] = rng.integers(8, size=len(group))
        pairs = pd.concat([cloudy.assign(pattern=-1, symmetry=-1), rest[rest["pattern"] >= 0]]).sort_index()
        return pairs.assign(target=pairs["site"].map(last), other=pairs["site"].map(before).fillna(-1))

    def _patterns_of(self, sensor: str, split: str) -> list[int]:
        found = range(len(self.patterns.get(sensor, ())))
        return [number for number in found if PATTERN_SPLITS[number % len(PATTERN_SPLITS)] == split]

    @cached_property
    def patterns(self) -> Mapping[str, list[CloudPattern]]:
        """Clouds of tiles without a clear twin, by sensor."""
        catalog, found = self.archive.catalog(), {}
        for name, tiles in catalog.groupby("sensor"):
            is_cloudy = _is_cloudy(tiles)
            alone = tiles[is_cloudy & (tiles["valid_fraction"] == 1) & ~tiles["site"].isin(tiles["site"][~is_cloudy])]
            read = [self.archive.read(str(s), str(name), group["row"].to_numpy()) for s, group in alone.groupby("shard")]
            if read:
                pixels, is_valid = (np.concatenate(part) for part in zip(*read))
                sensor = self.archive.sensors[str(name)]
                found[str(name)] = patterns(sensor, sensor.to_physical(pixels), is_valid > 0)
        return found

    def target_sensor(self, samples: TaskSamples) -> Sensor:
        return self.archive.sensors[samples.sensors[0]]

    def reader(self, samples: TaskSamples, perturbation: Perturbation | None = None) -> "CloudReader":
        return CloudReader(self, samples, perturbation)

    def outcome(self, samples: TaskSamples, chosen: np.ndarray, predicted: np.ndarray) -> Outcome:
        """Return what images (N, C, Y, X) are worth over the truth's valid pixels, clipped to 0..1."""
        truth, is_valid = self.reader(samples).clear(chosen, TARGET)
        found = [differences(scaled(p, CLIP), scaled(t, CLIP), valid) for p, t, valid in zip(predicted, truth, is_valid)]
        names = ("psnr", "mae", "rmse", "ssim", "sam")
        return restored(samples.place[chosen], [{name.upper(): image[name] for name in names} for image in found])


class CloudReader:
    """Cloudy and clear tiles of the same samples."""

    def __init__(self, task: CloudRemoval, samples: TaskSamples, perturbation: Perturbation | None = None) -> None:
        self._samples, self._perturbation = samples, perturbation
        self._sensor = task.target_sensor(samples).name
        self._patterns = task.patterns.get(self._sensor, [])
        rows = {column: np.maximum(samples.labels[:, column], 0) for column in (TARGET, OTHER)}
        self._clear = {c: TileReader(task.archive, with_rows(samples, self._sensor, found)) for c, found in rows.items()}
        self._inputs = TileReader(task.archive, samples)

    def example(self, chosen: np.ndarray) -> Example:
        """Return the cloudy tiles, to be mended, and the clear ones."""
        inputs = self.inputs(chosen)
        cloudy = inputs[self._sensor]
        return Example(inputs, cloudy.pixels[:, 0], cloudy.is_valid[:, 0], *self.clear(chosen, TARGET))

    def inputs(self, chosen: np.ndarray) -> dict[str, SensorArrays]:
        """Return what the encoder sees."""
        arrays = self._inputs.arrays(chosen)
        pixels = arrays[self._sensor].pixels.copy()
        for number, pattern, symmetry in zip(range(len(chosen)), *self._samples.labels[chosen][:, [PATTERN, SYMMETRY]].T):
            if pattern >= 0:
                pixels[number, 0] = self._patterns[pattern].over(pixels[number, 0], int(symmetry))
        arrays[self._sensor] = replace(arrays[self._sensor], pixels=pixels)
        return disturbed(arrays, self._perturbation, chosen)

    def clear(self, chosen: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the clear tiles (N, C, Y, X) of TARGET or OTHER and where they are valid: nowhere, where there is none."""
        arrays = self._clear[column].arrays(chosen)[self._sensor]
        return arrays.pixels[:, 0], arrays.is_valid[:, 0] & (self._samples.labels[chosen, column] >= 0)[:, None, None]


def _is_cloudy(tiles: pd.DataFrame) -> pd.Series:
    stated = tiles["labels"].map(lambda text: json.loads(text).get("cloudy", 0))
    return (stated == 1) | (tiles["cloud_fraction"] >= CLOUDY_FRACTION)
