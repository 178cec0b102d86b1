"""How fast a trainer is fed, beside other ways to feed it: python -m tests.bench.bench_stream.

Everyone delivers micro-batches of the same Sentinel-2 and Sentinel-1 tiles in physical units with validity, from files
in the page cache, with two processes or threads. Rates count from the first batch; the best of several rounds, in each
of which everyone has a turn. CPU time is that of all processes: where others use the machine, it says more than rates. A peer that is not installed is left out, and said so.
"""

import gc
import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import tyro
from torch.utils.data import DataLoader

from cluster.connect import connect
from pipeline.archive import Archive
from pipeline.plan import Plan, SetPlan
from pipeline.samples import SampleSource
from pipeline.stream import Stream, StreamConfig
from pipeline.views import CrossSensor
from tests.bench import peers
from tests.bench.calibrated_tiles import SENSORS, calibrated_archive

NUM_WORKERS = 2
BASELINE = "DataLoader, our reader"


@dataclass(frozen=True)
class Options:
    shards: int = 8
    sites: int = 512
    """Sites a shard; each is one sample."""
    batch_size: int = 32
    samples: int = 12_000
    rounds: int = 5
    threads: int = 2
    only: tuple[str, ...] = ()
    """Names of those to measure; empty: all."""


def streamed(source: SampleSource, plan: Plan, options: Options, decode: str) -> Iterator[int]:
    steps = options.samples // (options.batch_size * NUM_WORKERS)
    config = StreamConfig(decode=decode, threads=options.threads, augment=peers.AS_IS)  # type: ignore[arg-type]
    for micro_batches in Stream(source, plan, 0, 1, 0, steps, config):
        for micro in micro_batches:
            yield len(micro.sample)


def loaded(dataset: torch.utils.data.IterableDataset, options: Options) -> Iterator[int]:
    """Yield the sizes of the batches that a DataLoader of two worker processes gives, until there are enough."""
    # Not forked: a process that holds a Ray connection and its threads cannot be copied safely.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.bench.peers"])
    loader = DataLoader(dataset, batch_size=None, num_workers=NUM_WORKERS, multiprocessing_context=context)
    given = 0
    for batch in loader:
        size = len(batch[SENSORS[0]][0])
        yield size
        given += size
        if given >= options.samples:
            return


def rate(batches: Iterator[int]) -> tuple[float, float, float]:
    """Return samples per second after the first batch, seconds until it was there, and CPU milliseconds a sample after it."""
    started = time.perf_counter()
    next(batches)
    first, before = time.perf_counter(), cpu_seconds()
    samples = sum(batches)
    elapsed = time.perf_counter() - first
    return samples / elapsed, first - started, (cpu_seconds() - before) / samples * 1000


def cpu_seconds() -> float:
    """Return the CPU time that this process and all that it started have used."""
    total = sum(psutil.Process().cpu_times()[:4])
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def ways(archive: Archive, folder: Path, options: Options) -> dict[str, Callable[[], Iterator[int]]]:
    """Return name -> function that begins to deliver; prepares what each needs on disk."""
    source = SampleSource(archive, CrossSensor())
    counted = source.count([SENSORS])[SENSORS]
    plan = Plan([SetPlan(SENSORS, *counted, NUM_WORKERS, options.batch_size, 4, seed=0)], [1.0])
    found: dict[str, Callable[[], Iterator[int]]] = {
        BASELINE: lambda: loaded(peers.OurReader(source, plan.sets[0]), options),
        "stream, decode: trainer": lambda: streamed(source, plan, options, "trainer"),
        "stream, decode: cpu_nodes": lambda: streamed(source, plan, options, "cpu_nodes"),
    }
    others = {
        "DataLoader, zarr-python": ("zarr", peers.ZarrPython),
        "DataLoader, GeoTIFF + rasterio": ("rasterio", peers.GeoTiff),
        "webdataset": ("webdataset", peers.WebDataset),
        "litdata": ("litdata", peers.LitData),
    }
    for name, (module, peer) in others.items():
        if options.only and name not in options.only:
            continue
        if importlib.util.find_spec(module) is None:
            print(f"{name}: {module} is not installed, left out")
            continue
        dataset = peer(archive, folder / module, options.batch_size)
        found[name] = lambda dataset=dataset: loaded(dataset, options)
    print("mosaicml-streaming: needs torchvision, left out")
    return {name: way for name, way in found.items() if not options.only or name in options.only}


def main(options: Options) -> None:
    connect()
    with calibrated_archive(options.shards, options.sites) as archive:
        found = ways(archive, Path(archive.url).parent / "peers", options)
        best = dict.fromkeys(found, (0.0, np.inf, np.inf))
        for _ in range(options.rounds):
            for name, way in found.items():
                gc.collect()
                given, waited, spent = rate(way())
                best[name] = max(best[name][0], given), min(best[name][1], waited), min(best[name][2], spent)
                print(f"  {name}: {given:.0f} samples/s, {spent:.2f} ms CPU", flush=True)
    against = best[BASELINE][0] if BASELINE in best else np.nan
    print(f"\nbest of {options.rounds}, micro-batches of {options.batch_size}, {options.samples} samples a turn")
    for name, (given, waited, spent) in best.items():
        print(
            f"{name:32} {given:7.0f} samples/s {given / against:6.0%}   {spent:.2f} ms CPU a sample, first batch after {waited:.1f} s"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
