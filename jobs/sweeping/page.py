"""A sweep's page: question, verdict, tables and figures, as one HTML file that needs nothing else and as Markdown with PNGs."""

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
MARKDOWN = "report.md"
FIGURES = "figures"
DPI = 100


def write(run: Run, plan: Plan, findings: Findings, rows: pd.DataFrame, notes: Sequence[str]) -> None:
    """Write RUN/report.html, RUN/report.md and RUN/figures/<name>.png."""
    pictures = []
    for name, figure in findings.figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        storage.write_bytes(run.path(FIGURES, f"{name}.png"), buffer.getvalue())
        pictures.append(f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
    spent = (
        f"{len(rows)} runs, {rows['cpu_seconds'].sum() / 60:.1f} CPU-minutes, "
        f"{rows['counted_flops'].sum() / 1e12:.3g} TFLOP counted. One line a run: cells.parquet."
    )
    tables = [(title, lines) for title, lines in findings.tables if lines]
    parts = [
        f"<h1>{html.escape(plan.name)}</h1><p>{html.escape(plan.question)}</p>",
        f"<h2>Verdict</h2>{_list(findings.verdict)}",
        *pictures,
        *(f"<h2>{html.escape(title)}</h2>{_table(lines)}" for title, lines in tables),
        f"<h2>Notes</h2>{_list(notes)}" if notes else "",
        f"<p class=note>{spent}</p>",
    ]
    head = f"<meta charset=utf-8><title>{html.escape(plan.name)}</title><style>{STYLE}</style>"
    storage.write_bytes(run.path(FILE), f"<!doctype html><html lang=en>{head}{''.join(parts)}</html>".encode())
    paragraphs = [
        f"# {plan.name}\n\n{plan.question}",
        "## Verdict\n\n" + "\n".join(f"- {sentence}" for sentence in findings.verdict),
        *(f"![{name}]({FIGURES}/{name}.png)" for name in findings.figures),
        *(f"## {title}\n\n{_markdown(lines)}" for title, lines in tables),
        *(["## Notes\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []),
        spent,
    ]
    storage.write_bytes(run.path(MARKDOWN), ("\n\n".join(paragraphs) + "\n").encode())


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _columns(lines: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line))


def _table(lines: Sequence[dict[str, Any]]) -> str:
    columns = _columns(lines)
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
    body = "".join("<tr>" + "".join(_field(line.get(name, "")) for name in columns) + "</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _field(value: Any) -> str:
    kind = " class=number" if isinstance(value, int | float) else ""
    return f"<td{kind}>{html.escape(_short(value))}</td>"


def _markdown(lines: Sequence[dict[str, Any]]) -> str:
    columns = _columns(lines)
    rows = [[name.replace("_", " ") for name in columns], ["---"] * len(columns)]
    rows += [[_short(line.get(name, "")).replace("|", "/") for name in columns] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
