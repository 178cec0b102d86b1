"""Runs that cannot fit their GPUs are refused before anything starts, in one line; others are let through."""

import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import nn

from cluster.admission import require_memory
from cluster.job import Job
from cluster.start import sensors_of
from jobs.archives import write_statistics
from jobs.arguments import parse_recipe
from pipeline.archive import open_archive
from pipeline.errors import InputError
from tests.bench.calibrated_tiles import calibrated_archive


@pytest.fixture(scope="module")
def tiles() -> Iterator[str]:
    with calibrated_archive(2, 16) as archive:
        write_statistics(archive)
        yield archive.url


def on(monkeypatch: pytest.MonkeyPatch, *cards: str) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0} | {f"accelerator_type:{card}": 1.0 for card in cards})


def asked(archive: str, *arguments: str, recipe: str = "mae_tiny", **others: Any) -> None:
    """Ask whether such a run may start."""
    chosen = parse_recipe("pretrain", recipe, ["--gpus-per-worker", "1", *arguments])
    job = replace(Job("run", archive, "pretrain", chosen.train, chosen.build, {}), **others)
    with torch.device("meta"):
        shapes = job.build(sensors_of(job, open_archive(archive)), None)
    require_memory(job, shapes)


def large(sensors: Any, generator: Any) -> nn.Module:
    return nn.Linear(50_000, 30_000, bias=False)


def test_states_that_cannot_fit_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tiles: str) -> None:
    on(monkeypatch, "L4")
    with pytest.raises(InputError, match=r"ZeRO stage 0 needs \d+ GiB on each of 16 GPUs .* have 22 GiB; use --zero-stage 1 or 2"):
        asked(tiles, "--zero-stage", "0", "--workers", "16", "--lanes", "16", build=large)
    with pytest.raises(InputError, match=r"on each of 1 GPUs .*; use more workers"):
        asked(tiles, "--zero-stage", "2", "--workers", "1", build=large)


def test_micro_batches_that_cannot_fit_are_said_with_those_that_can(monkeypatch: pytest.MonkeyPatch, tiles: str) -> None:
    on(monkeypatch, "L4", "H200")
    asked(tiles)
    with pytest.raises(InputError, match=r"of 300000 samples need about \d+ GiB on each of 2 GPUs, they have 22 GiB") as refused:
        asked(tiles, "--batch-size", "300000")
    said = re.search(
        r"use --batch-size (\d+) \(with more --lanes for the same step\) or --recompute True or a higher", str(refused.value)
    )
    assert said
    asked(tiles, "--batch-size", said[1])
    with pytest.raises(InputError):
        asked(tiles, "--batch-size", str(round(1.2 * int(said[1]))))


def test_what_cannot_be_counted_is_not_judged(monkeypatch: pytest.MonkeyPatch, tiles: str) -> None:
    on(monkeypatch, "L4")
    asked(tiles, "--batch-size", "300000", "--compile", "True")
    with monkeypatch.context() as few:
        few.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100_000))
        asked(tiles, "--batch-size", "300000")
    with pytest.raises(InputError, match=r"use --batch-size \d+ \(with more --lanes for the same step\)$"):
        asked(tiles, "--batch-size", "300000", "--recompute", "True", "--zero-stage", "3")


@pytest.mark.parametrize("cards", [(), ("TPU-V4",), ("L4", "TPU-V4")])
def test_cards_that_are_not_known_are_not_judged(monkeypatch: pytest.MonkeyPatch, tiles: str, cards: tuple[str, ...]) -> None:
    on(monkeypatch, *cards)
    asked(tiles, "--batch-size", "300000")


def test_on_processors_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, tiles: str) -> None:
    on(monkeypatch, "L4")
    asked(tiles, "--batch-size", "300000", "--gpus-per-worker", "0")
