"""Pictures for the report: arrays in physical units become images that people can compare."""

import base64
import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

TRUE_COLOUR = (("B04", "B03", "B02"), ("red", "green", "blue"))
HIDDEN_GREY = 0.82
COLOURS = ("#1b6ca8", "#d1603d", "#4c956c", "#8e5ea2", "#c49a1a", "#5b6770")


def png(figure: Figure) -> str:
    """Return the figure as an <img> with its data inside, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def plot(figure: go.Figure, height_px: int = 380) -> str:
    """Return a figure as HTML, for a page that holds plotly's script."""
    figure.update_layout(template="plotly_white", height=height_px, margin={"l": 60, "r": 20, "t": 40, "b": 50})
    return figure.to_html(full_html=False, include_plotlyjs=False)


def to_rgb(pixels: np.ndarray, bands: tuple[str, ...], like: np.ndarray) -> np.ndarray:
    """Return (y, x, 3) in 0..1 of (band, y, x): true colour where there is any, else the first band in grey.

    Contrast follows `like` (2nd to 98th percentile), so that a prediction and its target share one scale.
    """
    chosen = next((names for names in TRUE_COLOUR if set(names) <= set(bands)), (bands[0],) * 3)
    channels = []
    for name in chosen:
        low, high = np.nanpercentile(like[bands.index(name)], [2, 98])
        channels.append(np.clip((pixels[bands.index(name)] - low) / max(high - low, 1e-9), 0, 1))
    return np.stack(channels, axis=-1)


def reconstruction_rows(arrays: dict[str, np.ndarray], bands: dict[str, tuple[str, ...]]) -> str:
    """Return one picture per sensor set and source: input, predictions and truths of a few unseen samples."""
    groups: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, value in arrays.items():
        number, index, sensor, field = key.split("/")
        groups.setdefault(f"{number}/{index}", {}).setdefault(sensor, {})[field] = value
    return "".join(_reconstruction(panels, bands) for _, panels in sorted(groups.items()))


def _reconstruction(panels: dict[str, dict[str, np.ndarray]], bands: dict[str, tuple[str, ...]]) -> str:
    source = next(name for name, panel in panels.items() if panel["is_source"])
    names = [source, *(name for name in panels if name != source)]
    columns = [(source, "input")] + [(name, kind) for name in names for kind in ("prediction", "target")]
    count = len(panels[source]["target"])
    figure, axes = plt.subplots(count, len(columns), figsize=(2.1 * len(columns), 2.15 * count), squeeze=False)
    for row in range(count):
        for axis, (name, kind) in zip(axes[row], columns):
            panel, target = panels[name], panels[name]["target"][row]
            image = to_rgb(target, bands[name], target)
            hidden = panel["is_hidden"][row][..., None]
            if kind == "input":
                image = np.where(hidden, HIDDEN_GREY, image)
            elif kind == "prediction":
                predicted = to_rgb(panel["prediction"][row], bands[name], target)
                image = np.where(hidden, predicted, image) if name == source else predicted
            image = np.where(panel["is_valid"][row][..., None], image, 1.0)
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(f"{name}\n{kind}", fontsize=8)
    figure.tight_layout(pad=0.4)
    return png(figure)


def registration_rows(arrays: dict[str, np.ndarray], captions: dict[str, str]) -> str:
    """Return red-cyan overlays of reference and scene, before and after the shift: colour fringes are misplacement."""
    scenes = list(dict.fromkeys(key.rpartition("/")[0] for key in arrays))
    if not scenes:
        return ""
    figure, axes = plt.subplots(len(scenes), 2, figsize=(7.6, 3.9 * len(scenes)), squeeze=False)
    for row, scene in zip(axes, scenes):
        for axis, state in zip(row, ("before", "after")):
            reference, moved = (_contrast(arrays[f"{scene}/{part}"])[48:144, 48:144] for part in ("reference", state))
            axis.imshow(np.stack([reference, moved, moved], axis=-1), interpolation="nearest")
            axis.set_title(f"{state}" + (f": {captions[scene]}" if state == "after" else f"  {scene}"), fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout(pad=0.6)
    return png(figure)


def _contrast(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [2, 98])
    return np.clip((image - low) / max(high - low, 1e-9), 0, 1)
