"""The model card: what people must know of an encoder before they use it, as README.md beside its weights."""

from typing import Any

from models.encoder import Encoder
from pipeline.archive import Archive

UNSTATED = "not stated: ask whoever trained the model, and mind the licences of the data"


def model_card(
    encoder: Encoder,
    config: dict[str, Any],
    step: int,
    archive: Archive,
    tiles: dict[str, int],
    graphs: list[dict[str, Any]],
    scores: dict[str, Any] | None,
    licence: str | None,
) -> str:
    """Return the card in Markdown.

    config: the run's config.json; tiles: how many of each sensor the archive has; scores: summary of an evaluate run.
    """
    backbone, train = encoder.config.backbone, config["config"]["train"]
    taught = f" from the teacher `{config['inputs']['teacher']}`" if "teacher" in config["inputs"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    parts = [
        f"# Terraloom encoder, recipe `{config['inputs']['recipe']}`",
        f"A {backbone.kind} of {encoder.num_parameters:,} parameters ({encoder.num_active_parameters:,} active for each token). "
        f"Tokens are {encoder.config.token_size_m:g} m wide, a tile's embedding has {encoder.config.pooled_width} values.",
        "```python\nfrom models import Batch, Encoder, Tiles\n\nencoder = Encoder.load(FOLDER)\n"
        "embedding = encoder.encode(Batch(...))[SENSOR].pooled\n```",
        "## Sensors\n\nBands in this order, in these units; the encoder normalises by itself and refuses others.\n\n"
        + _sensors(encoder),
        f"## Training\n\n`{config['job']}`{taught}: {step:,} steps of {train['lanes'] * train['batch_size']} samples, "
        f"seed {train['seed']}. Versions: {versions}. The whole configuration is in `config.json`.",
        f"## Data\n\nArchive `{archive.url}`, digest `{archive.digest()}`, sites of {archive.grid.site_size_m:g} m, tiles: "
        + ", ".join(f"{count:,} {name}" for name, count in tiles.items())
        + ". The train split was learned from.",
        "## Scores\n\n" + (_scores(scores) if scores else "None were named when this was exported (`--scores RUN`)."),
        *(["## Graphs\n\nCompared with the encoder on tiles of the archive.\n\n" + _graphs(graphs)] if graphs else []),
        f"## Licence\n\n{licence or UNSTATED}",
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _sensors(encoder: Encoder) -> str:
    specs = encoder.config.sensors
    rows = [(spec.name, spec.quantity, spec.unit, f"{spec.gsd_m:g} m", ", ".join(spec.bands)) for spec in specs]
    return _table(("sensor", "quantity", "unit", "pixel", "bands"), rows)


def _scores(summary: dict[str, Any]) -> str:
    rows = [
        (row.get("sensors", ""), row.get("model", ""), row.get("method", ""), f"{row['mean']:.3f} ± {row.get('spread', 0):.3f}")
        for row in summary["table"]
    ]
    about = (
        f"Task `{summary['task']}`, {summary['metric']}, from `{summary['run']}`." if "task" in summary else f"`{summary['run']}`"
    )
    return f"{about}\n\n" + _table(("sensors", "model", "method", "score"), rows)


def _graphs(graphs: list[dict[str, Any]]) -> str:
    facts = ("largest_difference", "mean_cosine", "least_cosine", "same_nearest")
    rows = [
        (line["file"], f"{line['bytes'] / 1e6:.1f} MB", line["tiles"], *(f"{line[f]:.4g}" if f in line else "" for f in facts))
        for line in graphs
    ]
    return _table(("file", "size", "tiles", *(fact.replace("_", " ") for fact in facts)), rows)
