"""Recipes at equal operations: as many TFLOP each on the same archive, then the same probes.

`python -m tests.bench.bench_budget ARCHIVE --tflop 20 --work DIR RECIPE ...`: on one Ray cluster a rehearsal of each recipe, which
says what a step costs; a run of as many steps as the budget allows; linear probes of every sensor that is labelled for `TASK`
(3 probe seeds, all training labels). Prints a table, the best mean over the sensors first. Runs that DIR holds are not done again.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import ray

from cluster.connect import connect
from cluster.embedding import FeatureMaker, ImageStatistics, ModelFeatures, RandomFeatures, features_of_shard
from jobs.evaluation.contenders import RANDOM
from jobs.evaluation.protocols._probe import Part
from jobs.evaluation.protocols.linear import probe
from models.encoder import Encoder
from pipeline.archive import Archive, open_archive
from tests.bench.bench_recipes import TASK, options_of, records, run

REHEARSED = 16
"""Steps of a rehearsal."""
TRAIN_SHARE = 0.8
SEEDS = 3


def operations(folder: Path) -> list[float]:
    """Return the TFLOP of each step."""
    steps = records(folder, "metrics.jsonl")
    samples = json.loads((folder / "config.json").read_text())["config"]["train"]
    count = samples["batch_size"] * samples["lanes"]
    return [step["tflops_per_second"] * count / step["samples_per_second"] for step in steps]


def train(name: str, archive: str, work: Path, budget: float) -> Path:
    """Run a recipe with `budget` TFLOP; return its folder."""
    options = options_of(name, archive, work)
    run("pretrain", name, archive, work / name / "rehearsal", "--num-steps", REHEARSED, *options)
    num_steps = round(budget / mean(operations(work / name / "rehearsal")))
    run("pretrain", name, archive, work / name / "run", "--num-steps", num_steps, *options)
    return work / name / "run"


def labelled(archive: Archive) -> Iterator[tuple[str, Any]]:
    """Yield each sensor and its tiles that have the label, which comes as a column."""
    catalog = archive.catalog()
    labels = catalog["labels"].map(lambda text: json.loads(text).get(TASK, np.nan)).astype(float)
    yield from catalog.assign(label=labels)[~labels.isna()].groupby("sensor")


def probes(archive: Archive, maker: FeatureMaker, sensors: tuple[str, ...]) -> dict[str, list[float]]:
    """Return the accuracy of each sensor's linear probes."""
    remote = ray.remote(num_cpus=1)(features_of_shard)
    found = {}
    for name, tiles in labelled(archive):
        if name not in sensors:
            continue
        parts = [
            (part, remote.remote(archive, maker, shard, name, part["row"].to_numpy())) for shard, part in tiles.groupby("shard")
        ]
        features = np.concatenate(ray.get([ref for _, ref in parts]))
        labels, splits = (np.concatenate([part[key].to_numpy() for part, _ in parts]) for key in ("label", "split"))
        found[name] = [accuracy(features, labels, splits.astype(str), seed) for seed in range(SEEDS)]
    return found


def accuracy(features: np.ndarray, labels: np.ndarray, split: np.ndarray, seed: int) -> float:
    """Return the test accuracy of a linear probe that has seen 80 % of the training labels."""
    train = np.random.default_rng(seed).permutation(np.flatnonzero(split == "train"))
    train = train[: int(TRAIN_SHARE * len(train))]
    chosen = [train, np.flatnonzero(split == "val"), np.flatnonzero(split == "test")]
    mean, std = features[train].mean(0), np.maximum(features[train].std(0), 1e-6)
    seen, val, test = (Part(part, (features[part] - mean) / std, labels[part]) for part in chosen)
    _, predict = probe("class", seen, val, lambda found: float(np.mean(found == val.labels)))
    return float(np.mean(predict(test.vectors) == test.labels))


def row(name: str, scores: dict[str, list[float]], *facts: str) -> tuple[float, str]:
    whole = mean(mean(values) for values in scores.values())
    cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for _, values in sorted(scores.items())]
    return whole, "| " + " | ".join([name, *facts, *cells, f"{whole:.3f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--tflop", type=float, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--sensors", nargs="+", default=["sentinel1_grd", "sentinel2_l2a"], help="those that are probed")
    parser.add_argument("--untrained", action="store_true", help="probe each encoder as it was before training, too")
    options = parser.parse_args()
    connect()
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    archive, sensors = open_archive(options.archive), tuple(options.sensors)
    rows = [row("image statistics", probes(archive, ImageStatistics(), sensors), *[""] * 4)]
    print(rows[0][1], flush=True)
    for name in options.recipes:
        folder = train(name, options.archive, options.work, options.tflop)
        steps, encoder = operations(folder), Encoder.load(folder / "model")
        times = {event["event"]: event["time"] for event in records(folder, "events.jsonl")}
        facts = [
            f"{encoder.num_parameters / 1e6:.2f}",
            str(len(steps)),
            f"{sum(steps):.1f}",
            f"{(times['checkpoint'] - times['training']) / 60:.1f}",
        ]
        rows.append(row(name, probes(archive, ModelFeatures(str(folder / "model")), sensors), *facts))
        print(rows[-1][1], flush=True)
        if options.untrained:
            rows.append(row(f"{name}, {RANDOM}", probes(archive, RandomFeatures(encoder.config, 0), sensors), facts[0], "", "", ""))
            print(rows[-1][1], flush=True)
    print("\n| recipe | encoder, M | steps | TFLOP | minutes | " + " | ".join(sorted(sensors)) + " | mean |")
    print("|---|---|---|---|---|" + "---|" * (len(sensors) + 1))
    print("\n".join(line for _, line in sorted(rows, reverse=True)))


if __name__ == "__main__":
    main()
