"""One line a cell, as a table: what was run, how large, what it cost, what it is worth."""

import io
from collections.abc import Sequence

import pandas as pd

from jobs.sweeping.cell import Cell
from jobs.sweeping.ledger import Ledger
from jobs.sweeping.worker import UNTRAINED

PROBES = "probe/"
LOSSES = "loss/"


def rows_of(cells: Sequence[Cell], ledger: Ledger) -> pd.DataFrame:
    """Return a row of each finished cell; columns 'loss/<exam>/<sensors>', 'probe/<label>/<sensors>', 'health/...' as there are."""
    rows = []
    for cell in cells:
        found = ledger.summary(cell.key)
        row = {"key": cell.key, "arm": cell.arm, "recipe": cell.recipe, "seed": cell.seed, "budget": str(cell.budget)}
        row |= found["sizes"]
        row |= {name: found[name] for name in ("counted_flops", "train_loss", "seconds", "cpu_seconds", "training_cpu_seconds")}
        for exam, losses in found["loss"].items():
            row |= {f"{LOSSES}{exam}/{name}" if exam else f"{LOSSES}{name}": value for name, value in losses.items()}
        row |= {f"{PROBES}{name}": of["score"] for name, of in found["probes"].items()}
        row |= {f"health/{name}": value for name, value in found["health"].items()}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for suffix in ("", f"/{UNTRAINED}"):
        asked = [name for name in frame if name.startswith(PROBES) and name.endswith(f"/{UNTRAINED}") == bool(suffix)]
        frame[f"probe{suffix}"] = frame[asked].mean(axis=1) if asked else float("nan")
    return frame


def to_parquet(rows: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()
