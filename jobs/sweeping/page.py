"""A sweep's page: question, verdict, tables and figures in one HTML file that needs nothing else; the figures as PNG beside it."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import pandas as pd

from cluster.run import Run
from jobs.report import STYLE
from jobs.sweeping.findings import Findings
from jobs.sweeping.plan import Plan
from pipeline import storage

FILE = "report.html"
FIGURES = "figures"
DPI = 100


def write(run: Run, plan: Plan, findings: Findings, rows: pd.DataFrame, notes: Sequence[str]) -> None:
    """Write RUN/report.html and RUN/figures/<name>.png."""
    pictures = []
    for name, figure in findings.figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        storage.write_bytes(run.path(FIGURES, f"{name}.png"), buffer.getvalue())
        pictures.append(f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    parts = [
        f"<h1>{html.escape(plan.name)}</h1><p>{html.escape(plan.question)}</p>",
        f"<h2>Verdict</h2>{_list(findings.verdict)}",
        *pictures,
        *(f"<h2>{html.escape(title)}</h2>{_table(lines)}" for title, lines in findings.tables if lines),
        f"<h2>Notes</h2>{_list(notes)}" if notes else "",
        f"<p class=note>{len(rows)} runs, {rows['cpu_seconds'].sum() / 60:.1f} CPU-minutes, "
        f"{rows['counted_flops'].sum() / 1e12:.3g} TFLOP counted. One line a run: cells.parquet.</p>",
    ]
    head = f"<meta charset=utf-8><title>{html.escape(plan.name)}</title><style>{STYLE}</style>"
    storage.write_bytes(run.path(FILE), f"<!doctype html><html lang=en>{head}{''.join(parts)}</html>".encode())


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _table(lines: Sequence[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(_field(line.get(name, "")) for name in columns) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _field(value: Any) -> str:
    if isinstance(value, float):
        return f"<td class=number>{value:.4g}</td>"
    return f"<td class=number>{value:,}</td>" if isinstance(value, int) else f"<td>{html.escape(str(value))}</td>"
