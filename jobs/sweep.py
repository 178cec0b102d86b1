"""terraloom sweep PLAN ARCHIVE RUN: many runs of one plan, side by side, and what follows from them.

Decides in which order cells run, how many at once, and that a failed one stops none of the others. The run's folder is the
ledger (`sweeping/ledger.py`): started again, only what is missing is done, also after the plan has grown.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.connect import connect, require_node
from cluster.run import Run
from cluster.workload import shape_of_archive
from jobs.progress import progress
from jobs.sweeping import page
from jobs.sweeping.cell import Cell
from jobs.sweeping.findings import find
from jobs.sweeping.ledger import Ledger
from jobs.sweeping.plan import Plan
from jobs.sweeping.rows import rows_of, to_parquet
from jobs.sweeping.sizes import Sizes, as_facts, sizes_of
from jobs.sweeping.worker import STATISTICS, Asked, quizzes_of, run_cell, score_statistics, seconds_per_step
from models.errors import InputError as ModelInputError
from pipeline import storage
from pipeline.archive import open_archive
from pipeline.errors import InputError, RunFailed

SIZES = "sizes.json"


@dataclass(frozen=True)
class SweepConfig:
    """What cells are asked and what they may use."""

    labels: tuple[str, ...] = ()
    """Labels of the archive that a linear probe is asked about after each run; none: all that it can answer."""
    probe_sensors: tuple[str, ...] = ()
    """Sensors whose tiles the probe is asked about; none: all."""
    probe_samples: int = 400
    """Of each split and sensor, at most; 0: no probe."""
    held_out_samples: int = 768
    """Of the val split, for the held-out loss; each as often as they come round."""
    changes: str = ""
    """GeoJSON of polygons, each with the time at which it changed (truth/changes.geojson of a simulated planet): change of a site
    between its first and last date is asked, too.
    """
    cell_cpus: float = 1.0
    """CPUs that a cell holds, and as many threads."""
    cell_gpus: float = 0.0
    """GPUs that a cell holds, without workers."""
    at_once: int = 0
    """Most cells that run together; 0: as many as the cluster has CPUs and GPUs for."""
    workers: str = "0"
    """Of each run, as of pretrain; 0: in the cell's own process, without Ray Train. Otherwise no held-out loss is asked."""
    dry_run: bool = False
    """Say how large every run would be, and start none."""

    def __post_init__(self) -> None:
        if self.probe_samples < 0 or self.held_out_samples < 1:
            raise InputError(f"probe_samples {self.probe_samples}, held_out_samples {self.held_out_samples} expected >= 0, >= 1")
        if self.cell_cpus <= 0 or self.cell_gpus < 0 or self.at_once < 0:
            found = f"cell_cpus {self.cell_cpus:g}, cell_gpus {self.cell_gpus:g}, at_once {self.at_once}"
            raise InputError(f"a sweep has {found}, expected > 0, >= 0, >= 0")
        if self.cell_gpus and self.workers != "0":
            raise InputError(
                f"cell_gpus is {self.cell_gpus:g} with workers '{self.workers}', expected 0, as GPUs are then held by each run's "
                "workers; use --workers 0, or give the recipe's train.gpus_per_worker in a plan file"
            )


def sweep(plan: Plan, archive_url: str, run_url: str, config: SweepConfig) -> dict[str, Any]:
    """Run what is missing of `plan`, and write what follows from all its cells; raise RunFailed if none could be finished."""
    if plan.finding != "arms" and config.workers != "0":
        raise InputError(
            f"workers is '{config.workers}', expected 0 for plan '{plan.name}', which is about held-out losses, that are asked "
            "of runs without workers only; use --workers 0"
        )
    archive_url = storage.absolute(archive_url)
    archive = open_archive(archive_url)
    if unknown := sorted(set(config.probe_sensors) - set(archive.sensors)):
        raise InputError(f"probe_sensors names {unknown[0]}, '{archive_url}' has {', '.join(sorted(archive.sensors))}")
    if config.dry_run:
        return explain(plan, archive_url)
    run = Run(run_url, "sweep")
    ledger = Ledger(run.url)
    asked = Asked(
        config.labels,
        config.probe_samples,
        config.held_out_samples,
        plan.finding == "arms",
        config.workers,
        storage.absolute(config.changes) if config.changes else "",  # cells run in other folders, and on other nodes
        config.probe_sensors,
    )
    if config.probe_samples and not quizzes_of(archive, asked):
        run.event("no_probe", because=f"'{archive_url}' has no label that a probe can answer in every split")
    run.begin(asked, {"plan": plan.name, "archive": archive_url, "digest": archive.digest()})
    connect()
    if config.workers == "0" and not all(ledger.is_done(cell.key) for cell in plan.cells):
        require_node(config.cell_cpus, config.cell_gpus, "give --cell-cpus and --cell-gpus that one has")
    sizes = _sizes(plan, archive_url, config, run)
    failed = _run_all(plan, sizes, archive_url, ledger, asked, config, run)
    done = [cell for cell in plan.cells if ledger.is_done(cell.key)]
    if not done:
        raise RunFailed(f"none of the {len(plan.cells)} cells could be finished; the first: {next(iter(failed.values()))}")
    rows = rows_of(done, ledger)
    storage.write_bytes(run.path("cells.parquet"), to_parquet(rows))
    findings = find(plan, done, rows, ledger)
    notes = [*plan.caveats, *(f"failed: {cell}: {reason}" for cell, reason in failed.items())]
    page.write(run, plan, findings, rows, notes)
    return run.finish(
        {
            "plan": plan.name,
            "archive": archive_url,
            "question": plan.question,
            "cells": len(plan.cells),
            "failed": len(failed),
            "cpu_minutes": round(float(rows["cpu_seconds"].sum()) / 60, 1),
            "petaflop": round(float(rows["counted_flops"].sum()) / 1e15, 4),
            **findings.summary,
            "verdict": findings.verdict,
            "notes": notes,
            "report": run.path(page.FILE),
        }
    )


def explain(plan: Plan, archive_url: str) -> dict[str, Any]:
    """Return how large each run of `plan` would be, once for cells that differ by their seed only."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    total = 0.0
    for cell in plan.cells:
        about = (cell.arm, str(cell.budget))
        if about not in found:
            shown = {"arm": cell.arm, "recipe": cell.recipe, "budget": str(cell.budget), "seeds": 0}
            found[about] = shown | (as_facts(_size(plan, cell, archive_url)) if not cell.budget.hours else {"steps": "by speed"})
        found[about]["seeds"] += 1
        total += found[about].get("flops", 0.0)
    sets = shape_of_archive(archive_url, plan.cells[0].recipe_of().train).sets
    shares = {"+".join(part.sensors): round(part.share, 3) for part in sets}
    return {
        "plan": plan.name,
        "question": plan.question,
        "cells": len(plan.cells),
        "petaflop": total / 1e15,
        "sensor_sets": shares,
        "runs": list(found.values()),
        "notes": list(plan.caveats),
    }


def _size(plan: Plan, cell: Cell, archive_url: str, seconds: float = 0.0) -> Sizes:
    return sizes_of(cell, archive_url, plan.teacher_of(cell) if cell.teacher else None, seconds)


def _sizes(plan: Plan, archive_url: str, config: SweepConfig, run: Run) -> dict[str, Sizes]:
    """Return the sizes of every cell by key: those written down by an earlier start, and further ones, once for all seeds."""
    url = run.path(SIZES)
    known = {key: Sizes(**of) for key, of in storage.read_json(url).items()} if storage.exists(url) else {}
    missing = [cell for cell in plan.cells if cell.key not in known]
    alike: dict[Any, Sizes] = {}
    for cell in progress(missing, len(missing), "sizes"):
        about = (cell.recipe, repr(cell.settings), cell.budget, cell.teacher)
        if about not in alike:
            seconds = 0.0
            if cell.budget.hours:
                timing: Any = ray.remote(num_cpus=config.cell_cpus, num_gpus=config.cell_gpus)(seconds_per_step)
                seconds = ray.get(timing.remote(cell, archive_url, run.url))
            alike[about] = _size(plan, cell, archive_url, seconds)
        known[cell.key] = alike[about]
    if missing:
        storage.write_json(url, {key: asdict(of) for key, of in known.items()})
    return known


def _run_all(
    plan: Plan, sizes: dict[str, Sizes], archive_url: str, ledger: Ledger, asked: Asked, config: SweepConfig, run: Run
) -> dict[str, str]:
    """Run the cells that are not done, those that teach others first; return which failed and why."""
    if not ledger.is_done(STATISTICS):
        scoring: Any = ray.remote(num_cpus=config.cell_cpus)(score_statistics)
        for _, reason in _results({scoring.remote(archive_url, run.url, asked): None}, dict):
            if reason:
                run.event("statistics_failed", reason=reason)
    alone = config.workers != "0"  # Ray Train's workers hold the CPUs, the task that starts them none
    cpus, gpus = (0.0, 0.0) if alone else (config.cell_cpus, config.cell_gpus)
    remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=1)(run_cell)

    def start(cell: Cell) -> Any:
        teacher = plan.teacher_of(cell).key if cell.teacher else ""
        return remote.remote(cell, sizes[cell.key], archive_url, ledger.url, teacher, asked)

    failed: dict[str, str] = {}

    def fail(cell: Cell, reason: str) -> None:
        failed[str(cell)] = reason
        ledger.fail(cell, reason)
        run.event("cell_failed", cell=str(cell), reason=reason)

    teachers = {plan.teacher_of(cell).key for cell in plan.cells if cell.teacher}
    for teaches in (True, False):
        waiting = [cell for cell in plan.cells if (cell.key in teachers) == teaches and not ledger.is_done(cell.key)]
        for cell in [cell for cell in waiting if cell.teacher and not ledger.is_done(plan.teacher_of(cell).key)]:
            waiting.remove(cell)
            fail(cell, f"its teacher, {plan.teacher_of(cell)}, has not finished")
        for cell, reason in progress(
            _bounded(waiting, start, config.at_once or (1 if alone else len(waiting))), len(waiting), "cells"
        ):
            if reason:
                fail(cell, reason)
    return failed


def _bounded(waiting: Sequence[Cell], start: Callable[[Cell], Any], most: int) -> Iterator[tuple[Cell, str]]:
    """Start cells, `most` at a time, and yield each as it ends with why it failed, '' if it did not."""
    rest = list(waiting)

    def more() -> dict[Any, Cell]:
        return {start(cell): cell for cell in [rest.pop(0)]} if rest else {}

    running: dict[Any, Cell] = {}
    for _ in range(min(most, len(rest))):
        running |= more()
    yield from _results(running, more)


def _results(running: dict[Any, Any], more: Callable[[], dict[Any, Any]]) -> Iterator[tuple[Any, str]]:
    """Yield what ended and why it failed, starting what `more` returns after each."""
    while running:
        (ended, *_), _ = ray.wait(list(running), num_returns=1)
        reason = ""
        try:
            ray.get(ended)
        except (RayError, InputError, ModelInputError, RunFailed) as error:
            reason = _reason(getattr(error, "cause", None) or error)
        yield running.pop(ended), reason
        running |= more()


def _reason(error: Exception) -> str:
    """Return one line: of what is told to people, all; of anything else, its kind and last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    return lines[0] if isinstance(error, InputError | ModelInputError | RunFailed) else f"{type(error).__name__}: {lines[-1]}"
