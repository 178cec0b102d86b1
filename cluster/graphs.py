"""An encoder's graphs for other runtimes, each compared with the encoder on real tiles before it is kept.

Decides what is written for each format, and when a graph is not the encoder. One graph a sensor: a user of one sensor needs one
file. What a graph is given is `models/graph.py`'s.
"""

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.encoder import Encoder
from models.graph import OUTPUTS, SensorGraph
from models.moe import MixtureOfExperts
from models.resnet import ResnetConfig
from pipeline.archive import Archive
from pipeline.dates import SECONDS_PER_DAY, seconds_of
from pipeline.errors import InputError

Format = Literal["safetensors", "torch", "onnx", "int8"]
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3
"""Largest difference of a float32 graph from the encoder, of the largest value of that output."""
NUM_TILES = 64
BATCH_SIZE = 16


@dataclass(frozen=True)
class RealTiles:
    """Tiles of one sensor: pixels (N, C, Y, X) float32 in its unit, is_valid (N, Y, X), time_days (N,), lonlat_deg (N, 2)."""

    pixels: Tensor
    is_valid: Tensor
    time_days: Tensor
    lonlat_deg: Tensor

    def inputs(self, graph: SensorGraph, part: slice = slice(None)) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name)[part] for name in graph.inputs)

    def batches(self) -> Iterator[slice]:
        """Yield batches of several sizes, the last one often smaller."""
        yield slice(0, 1)
        yield from (slice(first, first + BATCH_SIZE) for first in range(1, len(self.pixels), BATCH_SIZE))


def real_tiles(archive: Archive, name: str, count: int = NUM_TILES) -> RealTiles:
    """Return tiles of sensor `name`, spread over the archive, those that were not trained on where there are enough."""
    tiles = archive.tiles(archive.published())
    tiles = tiles[tiles["sensor"] == name]
    held = tiles[tiles["split"].isin(["val", "test"])]
    tiles = held if len(held) >= min(count, len(tiles)) else tiles
    if not len(tiles):
        raise InputError(f"archive '{archive.url}' has no tile of {name} to compare graphs on; give one that has with --data")
    chosen = tiles.iloc[np.unique(np.linspace(0, len(tiles) - 1, count).astype(int))]
    parts = [(group, *archive.read(str(shard), name, group["row"].to_numpy())) for shard, group in chosen.groupby("shard")]
    sensor = archive.sensors[name]
    return RealTiles(
        torch.from_numpy(np.concatenate([sensor.to_physical(stored) for _, stored, _ in parts])),
        torch.from_numpy(np.concatenate([valid for _, _, valid in parts]) > 0),
        torch.from_numpy(np.concatenate([seconds_of(group["time"]) / SECONDS_PER_DAY for group, _, _ in parts])),
        torch.from_numpy(np.concatenate([group[["lon_deg", "lat_deg"]].to_numpy(np.float64) for group, _, _ in parts])),
    )


def require_formats(formats: tuple[Format, ...], encoder: Encoder) -> None:
    """Raise InputError, saying why, if one of `formats` cannot be written here or of this encoder."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if {"onnx", "int8"} & set(formats) and missing:
        raise InputError(f"onnx and int8 need {', '.join(missing)}; pip install 'terraloom[export]'")
    if "int8" in formats and isinstance(encoder.config.backbone, ResnetConfig):
        raise InputError(
            "int8 makes whole numbers of matrix products, a resnet is convolutions and would stay as it is; leave int8 out"
        )


def write_graphs(encoder: Encoder, tiles: dict[str, RealTiles], folder: Path, formats: tuple[Format, ...]) -> list[dict[str, Any]]:
    """Write what `formats` name for each sensor of `tiles` to `folder`; return a line about each file."""
    require_formats(formats, encoder)
    found = []
    for name, real in tiles.items():
        graph = SensorGraph(encoder, name, real.pixels.shape[-1])
        with _quiet(), torch.no_grad():
            program = graph.exported()
            expected = _outputs(lambda *inputs, g=graph: g(*inputs), graph, real)
            files = _written(program, graph, folder, formats)
            for kind, path, run in files:
                line = {"sensor": name, "format": kind, "file": str(path.relative_to(folder)), "bytes": path.stat().st_size}
                found.append(line | _compared(kind, name, expected, _outputs(run, graph, real)))
    return found


def described(encoder: Encoder, tiles: dict[str, RealTiles]) -> dict[str, Any]:
    """Return what the graph of each sensor is given and returns, for people who have the files alone."""
    found = {}
    for name, real in tiles.items():
        spec, side = encoder.spec(name), real.pixels.shape[-1]
        graph = SensorGraph(encoder, name, side)
        inputs: dict[str, Any] = {
            "pixels": {"shape": ["batch", spec.num_bands, side, side], "dtype": "float32", "unit": spec.unit, "bands": spec.bands},
            "is_valid": {"shape": ["batch", side, side], "dtype": "bool"},
            "time_days": {"shape": ["batch"], "dtype": "float64", "unit": "days since 1970-01-01, NaN unknown"},
            "lonlat_deg": {"shape": ["batch", 2], "dtype": "float64", "unit": "degrees, NaN unknown"},
        }
        found[name] = {"gsd_m": spec.gsd_m, "inputs": {key: inputs[key] for key in graph.inputs}, "outputs": OUTPUTS}
    return found


def _written(
    program: torch.export.ExportedProgram, graph: SensorGraph, folder: Path, formats: tuple[Format, ...]
) -> Iterator[tuple[Format, Path, Callable[..., Any]]]:
    """Write one sensor's graph in each format; yield format, path, and the file as a function."""
    name = graph.spec.name
    if "torch" in formats:
        path = _folder(folder, "torch") / f"{name}.pt2"
        torch.export.save(program, path)
        yield "torch", path, torch.export.load(path).module()
    with tempfile.TemporaryDirectory() as scratch:
        if {"onnx", "int8"} & set(formats):
            path = (_folder(folder, "onnx") if "onnx" in formats else Path(scratch)) / f"{name}.onnx"
            torch.onnx.export(
                program, (), path, input_names=graph.inputs, output_names=OUTPUTS, dynamo=True, external_data=False, verbose=False
            )
            if "onnx" in formats:
                yield "onnx", path, _session(path, graph)
            if "int8" in formats:
                quantised = _folder(folder, "int8") / f"{name}.onnx"
                _quantise(path, quantised, any(isinstance(m, MixtureOfExperts) for m in graph.modules()))
                yield "int8", quantised, _session(quantised, graph)


def _quantise(path: Path, target: Path, has_experts: bool) -> None:
    """Write the graph with weights of matrix products in int8; what they are multiplied with is rounded as it comes."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes that the exporter (torch 2.13) states of experts do not agree with onnx's own
    # onnxruntime 1.31 has no kernel for stacked matrices with a scale for each column.
    quantize_dynamic(
        model, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=not has_experts, weight_type=QuantType.QInt8
    )


def _session(path: Path, graph: SensorGraph) -> Callable[..., Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, {name: value.numpy() for name, value in zip(graph.inputs, inputs)})


def _outputs(run: Callable[..., Any], graph: SensorGraph, real: RealTiles) -> list[Tensor]:
    parts = [run(*real.inputs(graph, part)) for part in real.batches()]
    return [torch.cat([torch.as_tensor(part[number]) for part in parts]) for number in range(len(OUTPUTS))]


def _compared(kind: Format, name: str, expected: list[Tensor], found: list[Tensor]) -> dict[str, float]:
    """Return how far a graph's outputs are from the encoder's; raise RuntimeError if a float32 graph is another function."""
    if kind == "int8":
        return _agreement(expected[0], found[0])
    worst = 0.0
    for output, wanted, made in zip(OUTPUTS, expected, found):
        difference = float((made.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp_min(1e-6))
        worst = max(worst, difference)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"the {kind} graph of {name} differs by {difference:.2g} in '{output}' from the encoder, none is kept"
            )
    return {"tiles": len(expected[0]), "largest_difference": worst}


def _agreement(wanted_ND: Tensor, made_ND: Tensor) -> dict[str, float]:
    """Return cosines of centred embeddings, and the share of tiles whose nearest other tile is the same."""
    centre_D = wanted_ND.mean(0)
    wanted_ND, made_ND = (F.normalize(part - centre_D, dim=-1) for part in (wanted_ND, made_ND))
    cosine_N = (wanted_ND * made_ND).sum(-1)
    nearest = [(part @ wanted_ND.T).fill_diagonal_(-2).argmax(1) for part in (wanted_ND, made_ND)]
    return {
        "tiles": len(wanted_ND),
        "mean_cosine": float(cosine_N.mean()),
        "least_cosine": float(cosine_N.min()),
        "same_nearest": float((nearest[0] == nearest[1]).float().mean()),
    }


def _folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from telling of operations of packages that are not installed, and of their own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
