"""terraloom evaluate TASK MODEL_RUN RUN: frozen probes of encoders on an archive's labels, beside the baselines.

A task is a label of the archive. Labels about one tile are probed sensor by sensor; labels about a site's dates
together (changed, flooded) use all its sensors: first and last date and their difference.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray

from cluster.embedding import FeatureMaker, ImageStatistics, ModelFeatures, RandomFeatures, features_of_shard
from cluster.run import Run, require_run
from cluster.scratch import ScratchConfig, train_from_scratch
from jobs.archives import TASK_CPUS
from jobs.probes import METRICS, Samples, knn_probe, linear_probe, score
from jobs.progress import gather
from models.encoder import Encoder, EncoderConfig
from pipeline import storage
from pipeline.archive import Archive, Label, open_archive
from pipeline.errors import InputError

RANDOM = "random initialisation"


@dataclass(frozen=True)
class EvaluateConfig:
    """How encoders are compared. Every number is a mean over `seeds` (spread = standard deviation)."""

    seeds: int = 3
    """Probe seeds: each sees another 80 % of the training labels; random initialisation is drawn anew for each."""
    sensors: tuple[str, ...] = ()
    """Sensors to probe; empty: all that the model and the labels share."""
    scratch_steps: int = 150
    """Optimiser steps of the supervised baseline; 0 leaves it out."""
    scratch_batch_size: int = 32

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.scratch_steps < 0 or self.scratch_batch_size < 1:
            raise InputError("seeds and scratch_batch_size must be at least 1, scratch_steps at least 0")


@dataclass(frozen=True)
class View:
    """What one probe looks at. `tiles`: for each sensor (samples, dates) indices into the catalog's rows."""

    name: str
    tiles: dict[str, np.ndarray]
    labels: np.ndarray
    split: np.ndarray


def evaluate(
    task: str, model_url: str, also: tuple[str, ...], data: str | None, run_url: str, config: EvaluateConfig
) -> dict[str, Any]:
    """Probe the model of `model_url`, those of `also`, and the baselines on label `task` of an archive."""
    run = Run(run_url, "evaluate")
    models = [require_run(url, ("pretrain", "distill"), "model/config.json") for url in (model_url, *also)]
    archive = open_archive(data or storage.read_json(models[0].path("config.json"))["inputs"]["archive"])
    if task not in archive.labels:
        known = ", ".join(sorted(archive.labels)) or "none"
        raise InputError(f"task '{task}' is no label of archive '{archive.url}' (labels: {known}); coregister it with --labels")
    encoders = {title: ModelFeatures(m.path("model")) for title, m in zip(_titles(models), models)}
    first = next(iter(encoders.values())).load()
    catalog = archive.catalog()
    label = archive.labels[task]
    if label.kind not in METRICS:
        raise InputError(
            f"label '{task}' is of kind '{label.kind}', which is not probed yet; evaluate one of kind {', '.join(METRICS)}"
        )
    views = _views(catalog, task, label, first, config)
    inputs = {"task": task, "models": [m.url for m in models], "archive": archive.url}
    if finished := run.begin(config, inputs):
        return finished
    makers: dict[str, list[FeatureMaker]] = {title: [maker] for title, maker in encoders.items()}
    makers |= _untrained({title: maker.load().config for title, maker in encoders.items()}, config.seeds)
    makers["image statistics"] = [ImageStatistics()]
    table = _probe_all(archive, catalog, views, makers, label, config)
    if config.scratch_steps:
        table += _scratch_all(archive, catalog, views, first, label, config)
    sizes = {title: maker.load().num_parameters for title, maker in encoders.items()}
    for row in table:
        row["parameters"] = sizes.get(row["model"])
    metric = METRICS[label.kind]
    table.sort(key=lambda row: (row["sensors"], row["method"], -row["mean"]))
    return run.finish({**inputs, "metric": metric, "table": table, "notes": _notes(table, metric)})


def random_title(title: str) -> str:
    """Return what the encoder of a further model is called as it was before training; that of the first is RANDOM."""
    return f"{RANDOM} ({title})"


def _untrained(encoders: dict[str, EncoderConfig], seeds: int) -> dict[str, list[FeatureMaker]]:
    """Return each different encoder as it was before training."""
    found: dict[EncoderConfig, str] = {}
    for title, config in encoders.items():
        found.setdefault(config, random_title(title) if found else RANDOM)
    return {title: [RandomFeatures(config, seed) for seed in range(seeds)] for config, title in found.items()}


def _titles(models: list[Run]) -> list[str]:
    """Return a name for each model: pretrained or student; a further one of a kind with its recipe, and numbered if need be."""
    titles: list[str] = []
    for model in models:
        config = storage.read_json(model.path("config.json"))
        kind = {"pretrain": "pretrained", "distill": "student"}.get(config["job"], config["job"])
        title = kind if kind not in titles else f"{kind} {config['inputs']['recipe']}"
        count = sum(known.split(" #")[0] == title for known in titles)
        titles.append(f"{title} #{count + 1}" if count else title)
    return titles


def _views(catalog: pd.DataFrame, task: str, label: Label, encoder: Encoder, config: EvaluateConfig) -> list[View]:
    values = catalog["labels"].map(lambda text: json.loads(text).get(task, np.nan)).to_numpy(float)
    known = {spec.name for spec in encoder.config.sensors}
    wanted = set(config.sensors) or known
    usable = catalog["sensor"].isin(known & wanted).to_numpy() & ~np.isnan(values)
    if not usable.any():
        raise InputError(f"no tile of {sorted(wanted)} has label '{task}' that the model knows (model: {sorted(known)})")
    labelled = catalog[usable].assign(label=values[usable])
    views = _tile_views(labelled) if label.scope == "tile" else [_site_view(labelled)]
    for view in views:
        counts = {split: int((view.split == split).sum()) for split in ("train", "val", "test")}
        if min(counts.values()) < 2:
            raise InputError(f"label '{task}' of {view.name} has {counts} samples by split; each split needs at least 2")
    return views


def _tile_views(labelled: pd.DataFrame) -> list[View]:
    return [
        View(
            str(name),
            {str(name): group.index.to_numpy()[:, None]},
            group["label"].to_numpy(),
            group["split"].to_numpy(str),
        )
        for name, group in labelled.groupby("sensor")
    ]


def _site_view(labelled: pd.DataFrame) -> View:
    counts = labelled.groupby(["site", "sensor"]).size().unstack(fill_value=0)
    # Sites that have what most have: the label is about all of it together.
    usual = counts.value_counts().index[0]
    names = [name for name, count in zip(counts.columns, usual) if count]
    sites = counts.index[(counts == usual).all(axis=1)]
    ordered = labelled[labelled["site"].isin(sites)].sort_values(["site", "sensor", "order"])
    tiles = {
        str(name): np.stack([group.index.to_numpy() for _, group in ordered[ordered["sensor"] == name].groupby("site")])
        for name in names
    }
    firsts = ordered.groupby("site").first()
    return View(" + ".join(map(str, names)), tiles, firsts["label"].to_numpy(), firsts["split"].to_numpy(str))


def combine(features: dict[str, np.ndarray]) -> np.ndarray:
    """Return (N, D') from (N, T, D) per sensor: one date as it is; more as first, last and absolute difference."""
    parts = []
    for values in features.values():
        first, last = values[:, 0], values[:, -1]
        parts += [first] if values.shape[1] == 1 else [first, last, np.abs(last - first)]
    return np.concatenate(parts, axis=1)


def _probe_all(
    archive: Archive,
    catalog: pd.DataFrame,
    views: list[View],
    makers: dict[str, list[FeatureMaker]],
    label: Label,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    needed = np.unique(np.concatenate([tiles.ravel() for view in views for tiles in view.tiles.values()]))
    rows = catalog.loc[needed]
    shared, remote = ray.put(archive), ray.remote(num_cpus=TASK_CPUS)(features_of_shard)
    tasks = {}
    for title, variants in makers.items():
        for number, maker in enumerate(variants):
            for (shard, sensor), group in rows.groupby(["shard", "sensor"]):
                key = (title, number, group.index.to_numpy())
                tasks[remote.remote(shared, maker, shard, sensor, group["row"].to_numpy())] = key
    features: dict[tuple[str, int], dict[int, np.ndarray]] = defaultdict(dict)
    for (title, number, indices), values in gather(tasks, "features"):
        features[title, number].update(zip(indices.tolist(), values))
    jobs, remote_probe = {}, ray.remote(num_cpus=TASK_CPUS)(_probe)
    for view in views:
        for title, variants in makers.items():
            stacks = [_samples(view, features[title, number]) for number in range(len(variants))]
            drawn = [ray.put(stack) for stack in stacks]
            for method in ("linear", "knn"):
                for seed in range(config.seeds):
                    ref = remote_probe.remote(drawn[seed % len(drawn)], label.kind, method, seed)
                    jobs[ref] = (view, title, method)
    scores: dict[Any, list[float]] = defaultdict(list)
    kept = {}
    for (view, title, method), value in gather(jobs, "probes"):
        scores[view.name, title, method].append(value)
        kept[view.name] = view
    return [_row(kept[name], title, method, values) for (name, title, method), values in scores.items()]


def _samples(view: View, features: dict[int, np.ndarray]) -> Samples:
    stacked = {name: np.stack([[features[int(i)] for i in dates] for dates in tiles]) for name, tiles in view.tiles.items()}
    return Samples(combine(stacked), view.labels, view.split)


def _probe(samples: Samples, kind: str, method: str, seed: int) -> float:
    return (linear_probe if method == "linear" else knn_probe)(samples, kind, seed)


def _row(view: View, title: str, method: str, values: list[float]) -> dict[str, Any]:
    return {
        "sensors": view.name,
        "model": title,
        "method": method,
        "mean": float(np.mean(values)),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "seeds": len(values),
        "num_train": int((view.split == "train").sum()),
        "num_test": int((view.split == "test").sum()),
    }


def _scratch_all(
    archive: Archive, catalog: pd.DataFrame, views: list[View], encoder: Encoder, label: Label, config: EvaluateConfig
) -> list[dict[str, Any]]:
    settings = ScratchConfig(config.scratch_steps, config.scratch_batch_size, label.kind, max(2, len(label.classes)))
    remote = ray.remote(num_cpus=TASK_CPUS)(train_from_scratch)
    shared = ray.put(archive)
    tasks = {}
    for view in views:
        places = {n: catalog.loc[t.ravel(), ["shard", "row"]].to_numpy().reshape(*t.shape, 2) for n, t in view.tiles.items()}
        for seed in range(config.seeds):
            ref = remote.remote(shared, encoder.config, places, view.labels, view.split, settings, seed)
            tasks[ref] = view.name
    scores: dict[str, list[float]] = defaultdict(list)
    by_name = {view.name: view for view in views}
    for name, predicted in gather(tasks, "supervised from scratch"):
        view = by_name[name]
        scores[name].append(score(label.kind, view.labels[view.split == "test"], predicted))
    return [_row(by_name[name], "supervised from scratch", "fine-tuned", values) for name, values in scores.items()]


def _notes(table: list[dict[str, Any]], metric: str) -> list[str]:
    """Say in words what the table shows of the first model against the baselines, per sensor, good or bad."""
    notes = []
    for sensors in sorted({row["sensors"] for row in table}):
        best = {
            row["model"]: row
            for row in sorted(table, key=lambda r: r["mean"])
            if row["sensors"] == sensors and row["method"] == "linear"
        }
        if "pretrained" not in best:
            continue
        own = best["pretrained"]["mean"]
        for other in (RANDOM, "image statistics"):
            gain = own - best[other]["mean"]
            word = "beats" if gain > 0 else "does not beat"
            notes.append(f"{sensors}: pretrained {word} {other} by {gain:+.3f} {metric} (linear probe)")
        if "student" in best and own > 0:
            notes.append(f"{sensors}: student keeps {best['student']['mean'] / own:.1%} of the teacher's {metric}")
    return notes
