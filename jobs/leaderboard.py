"""What a report shows of an evaluation: scores with intervals, classes, curves, confusion, and pictures of test samples.

Everything comes from the cells of the run's folder (`jobs.evaluation.cell`) and the table made of them. Pictures are those of each
model's best protocol, of its first seed.
"""

import html
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes

from jobs.evaluation.cell import REFUSED, Row, read, read_arrays
from jobs.evaluation.restored import LOWER_IS_BETTER
from jobs.figures import COLOURS, plot, png

Line = dict[str, Any]
MODELS_SHOWN = 3
"""In confusion matrices and pictures: the first model and the best others."""
UNLABELLED = 255
CLASS_COLOURS = plt.get_cmap("tab20")
REFERENCE_STRENGTH = {"wrong scale": 1.0}
"""Strength that is none; of other perturbations 0."""


def leaderboard(run_url: str, summary: dict[str, Any]) -> list[str]:
    """Return a section for each task; what is said of all of them stands under the first."""
    rows = list(read(run_url).values())
    sections: list[str] = []
    for task in dict.fromkeys(line["task"] for line in summary["table"]):
        lines = [line for line in summary["table"] if line["task"] == task]
        clean = [line for line in lines if not line["perturbation"]]
        notes = "" if sections else "".join(f"<li>{html.escape(note)}</li>" for note in summary["notes"])
        section = f"<h2>Evaluation: {html.escape(task)}</h2>{plot(_bars(clean))}<ul>{notes}</ul>{_scores(clean)}{_metrics(clean)}"
        mine = [row for row in rows if row.task == task]
        section += _fractions(clean) + _degradation(lines, mine) + _looked_at(run_url, clean, mine)
        sections.append(section)
    return sections


def _scores(rows: list[Line]) -> str:
    best: dict[tuple[str, float], float] = {}
    for row in rows:
        where = row["sensors"], row["fraction"]
        best[where] = max(best.get(where, -np.inf), row["mean"])
    lines = []
    for row in rows:
        mark = " best" if row["mean"] == best[row["sensors"], row["fraction"]] else ""
        size = f"{row['parameters'] / 1e6:.2f} M" if row.get("parameters") else ""
        cells = "".join(f"<td>{html.escape(row[name])}</td>" for name in ("sensors", "model", "method"))
        score = f"<td class='number{mark}'>{row['mean']:.3f} ± {row['spread']:.3f}</td>"
        around = f"{row['low']:.3f} … {row['high']:.3f}"
        counts = (around, row["seeds"], f"{row['fraction']:.0%}", row["num_train"], row["num_test"], size)
        lines.append(f"<tr>{cells}{score}{''.join(f'<td class=number>{value}</td>' for value in counts)}</tr>")
    return _table(("sensors", "model", "method", rows[0]["metric"], "95 %", "seeds", "labels", "train", "test", "size"), lines)


def _table(names: Sequence[str], lines: Sequence[str]) -> str:
    return f"<table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in names)}</tr>{''.join(lines)}</table>"


def _bars(rows: list[Line]) -> go.Figure:
    """Return each model's best protocol but knn, at the largest share of the labels, with its interval."""
    most = max(row["fraction"] for row in rows)
    shown = [row for row in rows if row["method"] != "knn" and row["fraction"] == most]
    figure = go.Figure()
    for number, model in enumerate(dict.fromkeys(row["model"] for row in shown)):
        best = {row["sensors"]: row for row in sorted(shown, key=lambda row: row["mean"]) if row["model"] == model}
        y, colour = [row["mean"] for row in best.values()], COLOURS[number % len(COLOURS)]
        figure.add_bar(name=model, x=list(best), y=y, error_y=_bounds(list(best.values())), marker_color=colour)
    figure.update_layout(barmode="group", yaxis_title=rows[0]["metric"], title="the best protocol of each but knn, 95 % intervals")
    return figure


def _bounds(rows: Sequence[Line]) -> dict[str, Any]:
    above, below = [row["high"] - row["mean"] for row in rows], [row["mean"] - row["low"] for row in rows]
    return {"type": "data", "array": above, "arrayminus": below}


def _metrics(rows: list[Line]) -> str:
    """Return all metrics, those of single classes among them, of each line at the largest share of the labels."""
    most = max(row["fraction"] for row in rows)
    shown = [row for row in rows if row["fraction"] == most]
    names = list(dict.fromkeys(name for row in shown for name in row["scores"]))
    lines = []
    for row in shown:
        cells = "".join(f"<td>{html.escape(row[name])}</td>" for name in ("sensors", "model", "method"))
        values = "".join(f"<td class=number>{row['scores'].get(name, float('nan')):.3f}</td>" for name in names)
        lines.append(f"<tr>{cells}{values}</tr>")
    shown_names = [f"{name} ↓" if name in LOWER_IS_BETTER else name for name in names]
    table = _table(("sensors", "model", "method", *shown_names), lines)
    return f"<details><summary>All metrics, and those of each class</summary><div style='overflow-x:auto'>{table}</div></details>"


def _fractions(rows: list[Line]) -> str:
    """Return for each set of sensors the score over the share of the labels, where there are several shares."""
    if len({row["fraction"] for row in rows}) < 2:
        return ""
    shown = []
    for sensors in dict.fromkeys(row["sensors"] for row in rows):
        figure = go.Figure()
        for (model, method), line in _series([row for row in rows if row["sensors"] == sensors], "fraction").items():
            x, y = [row["fraction"] for row in line], [row["mean"] for row in line]
            figure.add_scatter(x=x, y=y, error_y=_bounds(line), name=f"{model}, {method}", mode="lines+markers")
        figure.update_xaxes(type="log", title="share of the labels", tickformat=".0%")
        figure.update_layout(yaxis_title=rows[0]["metric"], title=sensors)
        shown.append(plot(figure))
    return f"<h3>Fewer labels</h3>{''.join(shown)}"


def _series(rows: Sequence[Line], along: str) -> dict[tuple[str, str], list[Line]]:
    found: dict[tuple[str, str], list[Line]] = {}
    for row in sorted(rows, key=lambda row: row[along]):
        found.setdefault((row["model"], row["method"]), []).append(row)
    return found


def _degradation(lines: list[Line], rows: list[Row]) -> str:
    """Return for each perturbation a curve of each model from the undisturbed score on, and who refused the tiles."""
    shown = []
    disturbed = [line for line in lines if line["perturbation"]]
    refused = [row for row in rows if row.error.startswith(REFUSED)]
    found = [(line["sensors"], line["perturbation"]) for line in disturbed] + [(row.sensors, row.perturbation) for row in refused]
    for sensors, name in dict.fromkeys(found):
        chosen = [line for line in disturbed if (line["sensors"], line["perturbation"]) == (sensors, name)]
        kind = next((kind for kind in REFERENCE_STRENGTH if name.startswith(kind)), "")
        at = REFERENCE_STRENGTH.get(kind, 0.0)
        figure = go.Figure()
        for number, ((model, method), line) in enumerate(_series(chosen, "strength").items()):
            alike = ("sensors", "model", "method", "fraction")
            clean = [n | {"strength": at} for n in lines if not n["perturbation"] and all(n[k] == line[0][k] for k in alike)]
            points = sorted([*clean, *line], key=lambda point: point["strength"])
            x, y = [point["strength"] for point in points], [point["mean"] for point in points]
            line_colour = {"color": COLOURS[number % len(COLOURS)]}
            figure.add_scatter(x=x, y=y, error_y=_bounds(points), name=f"{model}, {method}", mode="lines+markers", line=line_colour)
        figure.update_xaxes(type="log" if kind == "wrong scale" else "linear", title="strength")
        figure.update_layout(yaxis_title=lines[0]["metric"], title=f"{name} ({sensors})")
        said = [row for row in refused if (row.sensors, row.perturbation) == (sensors, name)]
        notes = "".join(f"<li>{html.escape(f'{r.model}, {r.strength:g}: {r.error}')}</li>" for r in said)
        shown.append((plot(figure, 300) if figure.data else "") + (f"<ul class=refused>{notes}</ul>" if notes else ""))
    return f"<h3>Disturbed test tiles</h3>{''.join(shown)}" if shown else ""


def _looked_at(run_url: str, lines: list[Line], rows: list[Row]) -> str:
    """Return confusion matrices and pictures of the first model and the best others, for each set of sensors."""
    parts, most = [], max(line["fraction"] for line in lines)
    for sensors in dict.fromkeys(line["sensors"] for line in lines):
        best = {line["model"]: line for line in sorted(lines, key=lambda n: n["mean"]) if _is_of(line, sensors, most)}
        order = sorted(best.values(), key=lambda line: (not line["model"].startswith("pretrained"), -line["mean"]))
        for line in order[:MODELS_SHOWN]:
            alike = (line["archive"], sensors, line["model"], line["method"], most, "", "")
            chosen = [r for r in rows if (r.archive, r.sensors, r.model, r.protocol, r.fraction, r.perturbation, r.error) == alike]
            if chosen:
                arrays = read_arrays(run_url, min(chosen, key=lambda row: row.seed).key)
                title = f"{line['model']}, {line['method']}, {sensors}"
                parts += [_confusion(arrays, title), _pictures(arrays, title)]
    return "".join(parts)


def _is_of(line: Line, sensors: str, fraction: float) -> bool:
    return (line["sensors"], line["fraction"]) == (sensors, fraction)


def _confusion(arrays: dict[str, np.ndarray], title: str) -> str:
    """Return a matrix of shares of each true class, where the outcome counts classes."""
    if "outcome/classes" not in arrays or not len(arrays["outcome/classes"]):
        return ""
    names = [str(name) for name in arrays["outcome/classes"]]
    if "outcome/counts" in arrays:
        counts = arrays["outcome/counts"].sum(0)
    elif arrays["outcome/labels"].ndim == 1:
        counts = np.zeros((len(names), len(names)))
        np.add.at(counts, (arrays["outcome/labels"].astype(int), arrays["outcome/predicted"].astype(int)), 1)
    else:
        return ""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = go.Figure(go.Heatmap(z=share, x=names, y=names, colorscale="Blues", zmin=0, zmax=1, texttemplate="%{z:.2f}"))
    figure.update_layout(title=f"confusion: {title}", xaxis_title="taken for", yaxis_title="true", yaxis_autorange="reversed")
    return plot(figure, 180 + 34 * len(names))


def _pictures(arrays: dict[str, np.ndarray], title: str) -> str:
    """Return a row of panels for each sample: input, truth, answer, error; maps in colours of classes, images as they are."""
    if "pictures/image" not in arrays:
        return ""
    image, true, predicted = (arrays[f"pictures/{name}"] for name in ("image", "true", "predicted"))
    draw = _draw_images if true.ndim == 4 else _draw_maps
    figure, axes = plt.subplots(len(image), 4, figsize=(8.4, 2.1 * len(image)), squeeze=False)
    for row, panels in zip(axes, zip(image, true, predicted)):
        draw(row, *panels)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[0], ("input", "true", "predicted", "error")):
        axis.set_title(name, fontsize=8)
    figure.tight_layout(pad=0.4)
    return f"<p class=note>{html.escape(title)}: input, true, predicted, error</p>{png(figure)}"


def _draw_maps(axes: Sequence[Axes], image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> None:
    """Draw classes; where the truth is not known everything is grey, wrong pixels are red."""
    is_known = true != UNLABELLED
    paint: Callable[[np.ndarray], np.ndarray] = lambda found: np.where(is_known[..., None], CLASS_COLOURS(found)[..., :3], 0.8)  # noqa: E731
    wrong = np.where((true != predicted)[..., None], (0.8, 0.1, 0.1), (1.0, 1.0, 1.0))
    for axis, shown in zip(axes, (image, paint(true), paint(predicted), np.where(is_known[..., None], wrong, 0.8))):
        axis.imshow(shown, interpolation="nearest")


def _draw_images(axes: Sequence[Axes], image: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> None:
    error = np.abs(true.astype(float) - predicted).mean(-1)
    for axis, shown in zip(axes, (image, true, predicted)):
        axis.imshow(shown, interpolation="nearest")
    axes[3].imshow(error, cmap="magma", vmin=0, vmax=128, interpolation="nearest")
