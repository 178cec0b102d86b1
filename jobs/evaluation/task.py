"""What is asked: a task names its kind, gives its samples, and says what an answer is worth.

A label of an archive makes a task (`LabelTask`). Tasks of other kinds, whose target is an image, are other classes with the
same methods; a protocol says which kinds it takes.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from jobs.evaluation.metrics import Changed, Classified, MultiRanked, Outcome, Ranked, Regressed, Segmented, counts_of
from jobs.evaluation.samples import TaskSamples, samples_of
from pipeline.archive import Archive, Label
from pipeline.definition import hint
from pipeline.errors import InputError
from pipeline.labels import LabelMap

METRICS = {
    "class": "accuracy",
    "binary": "average precision",
    "fraction": "R2",
    "multilabel": "micro mAP",
    "segmentation": "mIoU",
    "change": "F1",
}
"""Kinds of tasks that labels make, and the metric that tables show of each."""
OUTCOMES: dict[str, type[Outcome]] = {
    "class": Classified,
    "binary": Ranked,
    "fraction": Regressed,
    "multilabel": MultiRanked,
    "segmentation": Segmented,
    "change": Changed,
}
"""What holds the answers to tasks of a kind."""
DENSE = ("segmentation", "change")
"""Kinds whose answer is a map."""
STRATA = 10
"""Fractions are drawn in proportion to tenths of their range."""


class Task(Protocol):
    """Something that models are compared on. `kind` is what protocols go by; `metric` the first of its outcomes' scores."""

    @property
    def name(self) -> str: ...

    @property
    def archive(self) -> Archive: ...

    @property
    def kind(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def samples(self, sensors: frozenset[str]) -> list[TaskSamples]:
        """Return one set of samples for each sensor, or one of all sensors together, as far as they are among `sensors`."""
        ...

    def outcome(self, samples: TaskSamples, chosen: np.ndarray, predicted: Any) -> Outcome:
        """Return what answers to the samples numbered `chosen` are worth."""
        ...


@dataclass(frozen=True)
class LabelTask:
    """A label of an archive. `ignored` names classes that count for nothing: clutter, unclassified ground."""

    name: str
    archive: Archive
    ignored: tuple[str, ...] = ()

    @property
    def label(self) -> Label:
        return self.archive.labels[self.name]

    @property
    def kind(self) -> str:
        """The label's kind; a map of one date is a segmentation, one of a site's dates together is a change."""
        if self.label.kind != "map":
            return self.label.kind
        return "segmentation" if self.label.scope == "tile" else "change"

    @property
    def metric(self) -> str:
        return METRICS[self.kind]

    @cached_property
    def kept(self) -> list[int]:
        """The label's classes that count."""
        return [index for index, name in enumerate(self.label.classes) if name not in self.ignored]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.label.classes[index] for index in self.kept)

    def samples(self, sensors: frozenset[str]) -> list[TaskSamples]:
        """Return the samples of each sensor; of a label about a site's dates, those of all sensors together.

        Of the latter, only sites that have as many dates of each sensor as most have.
        """
        catalog = self.archive.catalog()
        values = catalog["labels"].map(lambda text: json.loads(text).get(self.name))
        usable = catalog.assign(label=values)[catalog["sensor"].isin(sensors) & values.notna()]
        if self.kind == "class" and self.ignored:
            usable = usable[usable["label"].astype(int).isin(self.kept)]
        if usable.empty:
            return []
        if self.label.scope == "tile":
            groups = [{str(name): [group]} for name, group in usable.groupby("sensor")]
        else:
            groups = [_whole_sites(usable)]
        return [self._labelled(group) for group in groups]

    def _labelled(self, groups: dict[str, list[pd.DataFrame]]) -> TaskSamples:
        values = next(iter(groups.values()))[0]["label"]
        if self.label.kind in ("class", "binary", "fraction"):
            labels = values.to_numpy(float)
            if self.label.kind == "class":
                labels = np.searchsorted(self.kept, labels.astype(int)).astype(float)
            strata = labels if self.label.kind != "fraction" else np.minimum(labels * STRATA, STRATA - 1).astype(int)
        elif self.label.kind == "multilabel":
            labels = np.array([np.isin(self.kept, found) for found in values]).reshape(len(values), len(self.kept))
            strata = np.zeros(len(labels))
        else:
            labels = np.stack(values.to_list())[:, self.kept]
            strata = labels[:, 1:].any(1) if self.kind == "change" else labels.argmax(1)
        return samples_of(groups, labels, strata)

    def target_sensor(self, samples: TaskSamples) -> str:
        """Return the sensor on whose pixels the map is asked: of the samples' sensors the finest."""
        return min(samples.sensors, key=lambda name: (self.archive.sensors[name].gsd_m, name))

    def targets(self, samples: TaskSamples, chosen: np.ndarray) -> LabelMap:
        """Return the maps (N, Y, X) of the samples numbered `chosen`, without ignored classes."""
        sensor = self.target_sensor(samples)
        rows, shards = samples.tiles.rows[sensor][chosen, 0], samples.tiles.shard[chosen]
        size = self.archive.sensors[sensor].tile_shape(self.archive.grid.site_size_m)
        codes, is_labelled = np.zeros((len(chosen), *size), np.uint8), np.zeros((len(chosen), *size), bool)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            found = self.archive.read_map(str(shard), sensor, self.name, rows[places])
            codes[places], is_labelled[places] = found.classes, found.is_labelled
        new = np.zeros(256, np.uint8)
        new[self.kept] = np.arange(len(self.kept))
        return LabelMap(new[codes], is_labelled & np.isin(codes, self.kept))

    def outcome(self, samples: TaskSamples, chosen: np.ndarray, predicted: np.ndarray) -> Outcome:
        """Return what `predicted` is worth: classes, scores of yes, numbers, scores (N, K), or maps (N, Y, X) of classes."""
        made: dict[str, Any] = {"place": samples.place[chosen]}
        if self.kind in DENSE:
            truth = self.targets(samples, chosen)
            made["counts"] = counts_of(truth.classes, predicted, truth.is_labelled, len(self.classes))
        else:
            made |= {"labels": samples.labels[chosen], "predicted": predicted}
        if self.label.classes:
            made["classes"] = self.classes
        return OUTCOMES[self.kind](**made)


def label_task(archive: Archive, name: str, ignored: tuple[str, ...] = ()) -> LabelTask:
    """Return the task that label `name` of an archive makes, or say why it makes none."""
    label = archive.labels[name]
    task = LabelTask(name, archive, tuple(known for known in label.classes if known in ignored))
    if task.kind not in METRICS:
        raise InputError(f"label '{name}' is of kind '{label.kind}', expected one of {', '.join(METRICS)}")
    if label.classes and len(task.classes) < 2:
        raise InputError(f"label '{name}' has the classes {label.classes}, of which {task.classes} are left; ignore fewer")
    if task.kind == "change" and len(task.classes) != 2:
        raise InputError(f"label '{name}' of sites has the classes {task.classes}, expected two: as before, and changed")
    return task


def check_ignored(ignored: tuple[str, ...], tasks: list[LabelTask]) -> None:
    """Refuse a class to be ignored that no task has."""
    known = sorted({name for task in tasks for name in task.label.classes})
    if unknown := [name for name in ignored if name not in known]:
        raise InputError(f"class '{unknown[0]}' is in none of the tasks (classes: {', '.join(known)}){hint(unknown[0], known)}")


def _whole_sites(labelled: pd.DataFrame) -> dict[str, list[pd.DataFrame]]:
    """Return sensor -> a table of sites for each date, of sites that have what most have: labels are about all of it together."""
    counts = labelled.groupby(["site", "sensor"]).size().unstack(fill_value=0)
    usual = counts.value_counts().index[0]
    sites = counts.index[(counts == usual).all(axis=1)]
    ordered = labelled[labelled["site"].isin(sites)].sort_values(["site", "sensor", "order"])
    result = {}
    for name, count in zip(counts.columns, usual):
        dates = ordered[ordered["sensor"] == name].groupby("site")
        if count:
            result[str(name)] = [dates.nth(number) for number in range(count)]
    return result
