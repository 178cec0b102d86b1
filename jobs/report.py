"""terraloom report RUN...: one static page about runs, that opens without a network."""

import html
import io
import json
from typing import Any

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from cluster.run import Run, require_run
from jobs.figures import COLOURS, plot, png, reconstruction_rows, registration_rows
from jobs.leaderboard import leaderboard
from jobs.registration_report import read_pictures, read_reports
from pipeline import storage
from pipeline.archive import Archive, open_archive

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { border-bottom: 1px solid #d8dee6; margin-top: 2.6rem; padding-bottom: .2rem; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .25rem .7rem; text-align: left; }
th { border-bottom: 2px solid #9aa7b5; } tr:nth-child(even) td { background: #f4f6f9; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .best { font-weight: 700; }
img { max-width: 100%; margin: .4rem 0; } p.note { color: #55606e; } code { background: #f0f2f5; padding: 0 .25rem; }
"""
SMOOTHED_STEPS = 25
LOSS_TERMS = ("l1/", "mse/", "objective/")
"""What objectives call the parts of their losses that are one sensor's."""
HEALTH = {"feature_std/": "spread of embeddings", "effective_rank/": "effective rank"}


def report(runs: list[str], out: str | None) -> dict[str, Any]:
    """Write the page to `out`, by default `report.html` in the first run's folder."""
    found = [require_run(url, "job", "config.json") for url in runs]
    configs = [storage.read_json(run.path("config.json")) for run in found]
    summaries = [_optional_json(run.path("summary.json")) for run in found]
    sections = [_overview(run, config, summary) for run, config, summary in zip(found, configs, summaries)]
    sections += [part for run, summary in zip(found, summaries) if "table" in summary for part in leaderboard(run.url, summary)]
    for run, config in zip(found, configs):
        sections += [_curves(run, config["job"]), _reconstructions(run)]
    for url in dict.fromkeys(url for config in configs for url in _archives(config["inputs"])):
        archive = open_archive(url)
        sections += [_registration(archive), _map(archive)]
    title = "Terraloom: " + ", ".join(f"{config['job']} {config['inputs'].get('recipe', '')}".strip() for config in configs)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script><h1>{html.escape(title)}</h1>{''.join(sections)}</html>"
    )
    target = storage.absolute(out or found[0].path("report.html"))
    storage.write_bytes(target, page.encode())
    return {"report": target, "runs": [run.url for run in found]}


def _archives(inputs: dict[str, Any]) -> list[str]:
    return inputs.get("archives") or [inputs["archive"]]


def _optional_json(url: str) -> dict[str, Any]:
    return storage.read_json(url) if storage.exists(url) else {}


def _optional_arrays(url: str) -> dict[str, np.ndarray]:
    if not storage.exists(url):
        return {}
    with np.load(io.BytesIO(storage.read_bytes(url)), allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def _overview(run: Run, config: dict[str, Any], summary: dict[str, Any]) -> str:
    shown = {k: v for k, v in summary.items() if isinstance(v, int | float | str) and k not in ("job", "run") and "/" not in k}
    rows = {**config["inputs"], **shown, "state": "finished" if summary else "not finished"}
    versions = ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items())
    body = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(_short(v))}</td></tr>" for k, v in rows.items())
    return f"<h2>{config['job']}: <code>{html.escape(run.url)}</code></h2><table>{body}</table><p class=note>{versions}</p>"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(run: Run, job: str) -> str:
    if not storage.exists(run.path("metrics.jsonl")):
        return ""
    lines = storage.read_bytes(run.path("metrics.jsonl")).decode().splitlines()
    records = [record for record in map(json.loads, lines) if record["loss"] is not None]  # null: a step that was left out
    figure, speed = go.Figure(), go.Figure()
    for number, name in enumerate(dict.fromkeys(record["sensor_set"] for record in records)):
        chosen, colour = [r for r in records if r["sensor_set"] == name], COLOURS[number % len(COLOURS)]
        steps = [r["step"] for r in chosen]
        directions = {key for r in chosen for key in r if key.startswith(LOSS_TERMS)}
        figure.add_scatter(x=steps, y=_smooth([r["loss"] for r in chosen]), name=f"loss {name}", line={"color": colour, "width": 3})
        for key in sorted(directions):
            points = [(r["step"], r[key]) for r in chosen if key in r]
            x, y = [p[0] for p in points], _smooth([p[1] for p in points])
            figure.add_scatter(x=x, y=y, name=key, line={"color": colour, "width": 1, "dash": "dot"}, visible="legendonly")
        speed.add_scatter(x=steps, y=_smooth([r["samples_per_second"] for r in chosen]), name=name, line={"color": colour})
    figure.update_layout(xaxis_title="step", yaxis_title="loss (mean of 25 steps)")
    speed.update_layout(xaxis_title="step", yaxis_title="samples per second")
    wait = float(np.mean([r["data_wait_share"] for r in records[len(records) // 10 :]]))
    note = f"<p class=note>Waiting for data: {wait:.1%} of the time after the first tenth of the steps.</p>"
    return f"<h2>Training: {html.escape(job)}</h2>{plot(figure)}{_health(records)}{plot(speed, 260)}{note}"


def _health(records: list[dict[str, Any]]) -> str:
    """Return a figure for each measure of `HEALTH`, a line for each sensor; nothing where nothing was looked at."""
    shown = []
    for prefix, title in HEALTH.items():
        figure = go.Figure()
        for number, key in enumerate(sorted({key for record in records for key in record if key.startswith(prefix)})):
            steps, values = zip(*[(record["step"], record[key]) for record in records if key in record])
            line = {"color": COLOURS[number % len(COLOURS)]}
            figure.add_scatter(x=steps, y=values, name=key.removeprefix(prefix), line=line, mode="lines+markers")
        figure.update_layout(xaxis_title="step", yaxis_title=title, yaxis_rangemode="tozero")
        shown += [plot(figure, 260)] if figure.data else []
    return "".join(shown)


def _smooth(values: list[float]) -> list[float]:
    width = min(SMOOTHED_STEPS, len(values))
    padded = np.concatenate([np.full(width - 1, values[0]), values])
    return np.convolve(padded, np.full(width, 1 / width), mode="valid").tolist()


def _reconstructions(run: Run) -> str:
    arrays = _optional_arrays(run.path("reconstructions.npz"))
    if not arrays:
        return ""
    sensors = storage.read_json(run.path("model", "config.json"))["encoder"]["sensors"]
    rows = reconstruction_rows(arrays, {sensor["name"]: tuple(sensor["bands"]) for sensor in sensors})
    note = "Tiles outside the train split. Grey ground is hidden from the model; the other sensor is never shown to it."
    return f"<h2>Reconstructions</h2><p class=note>{note}</p>{rows}"


def _registration(archive: Archive) -> str:
    found = read_reports(archive)
    if not found["scenes"]:
        return ""
    captions = {scene: f"moved {s['shift_x_m']:+.1f} m east, {s['shift_y_m']:+.1f} m north" for scene, s in found["scenes"].items()}
    rows = "".join(
        f"<tr><td>{html.escape(scene)}</td><td class=number>{s['shift_x_m']:+.1f}</td><td class=number>{s['shift_y_m']:+.1f}</td>"
        f"<td class=number>{s['confidence']:.2f}</td><td>{html.escape(s['reason'])}</td></tr>"
        for scene, s in found["scenes"].items()
    )
    refused = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in found["refused"].items())
    pictures = registration_rows(read_pictures(archive), captions)
    head = "<tr><th>scene</th><th>east, m</th><th>north, m</th><th>confidence</th><th>evidence</th></tr>"
    note = "Reference in red, scene in cyan: where they agree the picture is grey."
    body = f"<p class=note>{note}</p>{pictures}<table>{head}{rows}</table>" + (
        f"<p>Refused:</p><ul>{refused}</ul>" if refused else ""
    )
    return f"<h2>Co-registration</h2>{body}"


def _map(archive: Archive) -> str:
    catalog = archive.catalog()
    sites = catalog.drop_duplicates("site")
    counts = catalog.groupby(["sensor", "split"])["site"].count().unstack(fill_value=0)
    head = "".join(f"<th>{split}</th>" for split in counts.columns)
    rows = "".join(f"<tr><td>{s}</td>{''.join(f'<td class=number>{n}</td>' for n in row)}</tr>" for s, row in counts.iterrows())
    table = f"<table><tr><th>tiles</th>{head}</tr>{rows}</table>"
    placed = sites[sites.geometry.notna()]
    if placed.empty:
        return f"<h2>Samples</h2>{table}"
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    _draw(placed, placed["split"], axes[0], "split")
    classes = [(name, label.classes) for name, label in archive.labels.items() if label.kind == "class"]
    if classes:
        name, known = classes[0]
        values = placed["labels"].map(lambda text: json.loads(text).get(name))
        _draw(placed[values.notna()], values.dropna().map(lambda v: known[int(v)]), axes[1], f"{name} (majority)")
    else:
        _draw(placed, placed["sensor"], axes[1], "sensor")
    figure.tight_layout()
    return f"<h2>Samples</h2>{png(figure)}{table}"


def _draw(sites: gpd.GeoDataFrame, column: Any, axis: Any, title: str) -> None:
    gpd.GeoDataFrame({"value": column}, geometry=sites.geometry).plot(
        "value", ax=axis, categorical=True, cmap="tab20", legend=True, edgecolor="white", linewidth=0.2,
        legend_kwds={"fontsize": 7, "loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False},
    )  # fmt: skip
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.ticklabel_format(useOffset=False)
