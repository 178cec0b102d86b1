"""A summary for people."""

import json
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table


def show(summary: dict[str, Any], output: TextIO) -> None:
    """Print a summary, its tables as tables; a manifest as it is."""
    if "manifest" in summary:
        output.write(summary["manifest"])
        return
    console = Console(file=output)
    if not console.is_terminal:
        console = Console(file=output, width=150)  # what is piped should not be folded to 80 columns
    for key, value in summary.items():
        if key not in ("table", "memory_gib_by_micro_batch"):
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            console.print(f"[bold]{key}[/bold]: {shown}", highlight=False, soft_wrap=True)
    if "memory_gib_by_micro_batch" in summary:
        table = Table(title=f"GiB of a GPU, which has {summary['gpu_memory_gib']:g}")
        for column in ("micro-batch", *(f"ZeRO {stage}" for stage in summary["memory_gib_per_gpu"])):
            table.add_column(column, justify="right")
        for size, needs in summary["memory_gib_by_micro_batch"].items():
            said = (f"{need:.1f}" if need <= summary["gpu_memory_gib"] else f"[red]{need:.1f} no[/red]" for need in needs.values())
            table.add_row(size, *said)
        console.print(table)
    for title, lines in _by_task(summary.get("table", [])).items():
        table = Table(title=title)
        for column in ("sensors", "model", "method", "labels", "mean ± spread", "95 %", "seeds", "train", "test", "parameters"):
            table.add_column(column, no_wrap=column in ("mean ± spread", "95 %"))
        for row in lines:
            size = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else ""
            score, around = f"{row['mean']:.3f} ± {row['spread']:.3f}", f"{row['low']:.3f} … {row['high']:.3f}"
            counts = (str(row["seeds"]), str(row["num_train"]), str(row["num_test"]))
            how = f"{row['method']}, {row['perturbation']} {row['strength']:g}" if row["perturbation"] else row["method"]
            table.add_row(row["sensors"], row["model"], how, f"{row['fraction']:.0%}", score, around, *counts, size)
        console.print(table)


def _by_task(table: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of an evaluation's table by what they measure."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        found.setdefault(f"{row['task']} ({row['metric']})", []).append(row)
    return found
