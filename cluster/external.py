"""Encoders of others behind the same checks as our own: a description says which bands, unit and normalisation they expect.

Decides the description (one JSON file) and where a model comes from: an ONNX file, a Python function that returns a
`torch.nn.Module`, or the weights of timm and torchgeo where these are installed. A torch.export file is not read: that unpickles.
What such a model was pretrained on is not known here, so its overlap with test places is not looked for.

    {"title": "ImageNet ResNet-50", "model": "resnet50.onnx", "size_px": 224,
     "sensors": [{"name": "rgb_aerial", "bands": ["red", "green", "blue"], "unit": "1", "gsd_m": 0.5,
                  "mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}]}

mean and std are in the sensor's unit. A model gives (N, D), or maps (N, D, y, x) or tokens (N, L, D), which are averaged.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cluster.embedding import embed
from models.batch import Batch, Tiles
from models.encoder import Embedding
from models.sensor import SensorSpec
from models.values import check_values
from pipeline.augment import SensorArrays
from pipeline.errors import InputError
from pipeline.sensors import load_sensor

Network = Callable[[Tensor], Tensor]
FIELDS = {"title", "model", "sensors", "size_px"}
SENSOR_FIELDS = {"name", "bands", "unit", "gsd_m", "mean", "std"}


@dataclass(frozen=True)
class ExternalConfig:
    """What is known of a model of others. `model`: a path ending in .onnx, or python:module:function, timm:name, torchgeo:weights.

    size_px: tiles are resized to so many pixels a side, bilinear; 0: they are taken as they are.
    """

    title: str
    model: str
    sensors: tuple[SensorSpec, ...]
    size_px: int = 0


class ExternalEncoder:
    """Embeds batches as `models.Encoder` does: `encode` checks bands, unit, pixel size and values, and normalises."""

    def __init__(self, config: ExternalConfig, network: Network, num_parameters: int) -> None:
        self.config, self.num_parameters = config, num_parameters
        self._network = network

    def spec(self, sensor: str) -> SensorSpec:
        for spec in self.config.sensors:
            if spec.name == sensor:
                return spec
        known = ", ".join(spec.name for spec in self.config.sensors)
        raise InputError(
            f"sensor '{sensor}' is not described for '{self.config.title}' (has {known}); describe it, or leave it out"
        )

    @torch.no_grad()
    def encode(self, batch: Batch) -> dict[str, Embedding]:
        """Return one vector a tile, as a map of one cell too."""
        return {name: self._embed(tiles, self.spec(name)) for name, tiles in batch.tiles.items()}

    def _embed(self, tiles: Tiles, spec: SensorSpec) -> Embedding:
        missing = [band for band in spec.bands if band not in tiles.bands]
        if missing:
            raise InputError(
                f"tiles of '{spec.name}' lack band {missing[0]} that '{self.config.title}' expects (have {tiles.bands})"
            )
        places = [tiles.bands.index(band) for band in spec.bands]
        chosen = replace(tiles, pixels=tiles.pixels[:, :, places], bands=spec.bands)
        spec.check(chosen, spec.gsd_m)
        pixels, is_valid = chosen.pixels.flatten(0, 1), chosen.is_observed.flatten(0, 1)
        normalised = spec.normalise(pixels, is_valid, spec.level(pixels, is_valid))
        check_values(normalised, is_valid, spec)
        if self.config.size_px:
            size = (self.config.size_px, self.config.size_px)
            normalised = F.interpolate(normalised, size=size, mode="bilinear", align_corners=False, antialias=True)
        found = self._network(normalised.contiguous()).float()
        pooled = found.mean((2, 3)) if found.ndim == 4 else found.mean(1) if found.ndim == 3 else found
        pooled = pooled.unflatten(0, tiles.is_present.shape)
        return Embedding(pooled, pooled[:, :, None, None], is_valid.flatten(1).any(1).view(*tiles.is_present.shape, 1, 1))


@dataclass
class ExternalFeatures:
    """Embeddings of the model that the description at `path` is of."""

    path: str

    def load(self) -> ExternalEncoder:
        config = read_description(self.path)
        return ExternalEncoder(config, *_network(config, Path(self.path).parent))

    def features(self, arrays: SensorArrays, lonlat_deg: np.ndarray) -> np.ndarray:
        return embed(self.load(), arrays, lonlat_deg)  # type: ignore[arg-type]

    def digest(self) -> str:
        """Return the SHA-256 of the description, and of the model where it is a file."""
        content, model = Path(self.path).read_bytes(), Path(self.path).parent / read_description(self.path).model
        return hashlib.sha256(content + (model.read_bytes() if model.is_file() else b"")).hexdigest()


def read_description(path: str) -> ExternalConfig:
    """Return what a JSON file says of a model."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError:
        raise InputError(f"no description of an external encoder at '{path}'; give a JSON file (cluster/external.py)") from None
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON ({error})") from None
    _check_fields(content, FIELDS, FIELDS - {"size_px"}, path)
    specs = tuple(_spec(part, f"{path}, sensors[{number}]") for number, part in enumerate(content["sensors"]))
    return ExternalConfig(content["title"], content["model"], specs, int(content.get("size_px", 0)))


def _check_fields(content: Any, known: set[str], required: set[str], where: str) -> None:
    found = set(content) if isinstance(content, Mapping) else set()
    if wrong := sorted((found - known) | (required - found)):
        state = "unknown" if wrong[0] in found else "missing"
        raise InputError(f"{where}: field '{wrong[0]}' is {state}; expected {', '.join(sorted(known))}")


def _spec(content: Any, where: str) -> SensorSpec:
    _check_fields(content, SENSOR_FIELDS, SENSOR_FIELDS, where)
    sensor = load_sensor(content["name"])
    bands = [sensor.band(name) for name in content["bands"]]
    return SensorSpec(
        name=sensor.name,
        sensing=sensor.sensing,
        quantity=sensor.quantity,
        unit=content["unit"],
        gsd_m=float(content["gsd_m"]),
        bands=tuple(band.name for band in bands),
        wavelength_nm=tuple(band.wavelength_nm for band in bands),
        mean=tuple(map(float, content["mean"])),
        std=tuple(map(float, content["std"])),
    )


def _network(config: ExternalConfig, folder: Path) -> tuple[Network, int]:
    """Return the model, and how many parameters it has."""
    source, _, name = config.model.partition(":")
    if config.model.endswith(".onnx"):
        return _onnx(folder / config.model)
    loaders = {"python": _python, "timm": _timm, "torchgeo": _torchgeo}
    if source not in loaders:
        raise InputError(f"model '{config.model}' is none of FILE.onnx, python:MODULE:FUNCTION, timm:NAME, torchgeo:WEIGHTS")
    module = loaders[source](name, config).eval()
    return module, sum(parameter.numel() for parameter in module.parameters())


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"'{name}' cannot be imported ({error}); install it, or write its model as an ONNX file and describe that"
        ) from None


def _onnx(path: Path) -> tuple[Network, int]:
    runtime = _imported("onnxruntime")
    if not path.is_file():
        raise InputError(f"no model at '{path}'; 'model' is a path from the description's folder on")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (first, *others) = session.get_inputs()
    if others:
        raise InputError(f"'{path}' takes {1 + len(others)} inputs, expected one: pixels (N, C, Y, X)")
    size = first.shape[0] if isinstance(first.shape[0], int) else None

    def run(pixels: Tensor) -> Tensor:
        parts = pixels.split(size) if size else [pixels]
        return torch.cat([torch.from_numpy(session.run(None, {first.name: part.numpy()})[0]) for part in parts])

    return run, 0


def _python(name: str, config: ExternalConfig) -> nn.Module:
    module, _, function = name.partition(":")
    return getattr(_imported(module), function)()


def _timm(name: str, config: ExternalConfig) -> nn.Module:
    return _imported("timm").create_model(name, pretrained=True, num_classes=0, in_chans=config.sensors[0].num_bands)


def _torchgeo(name: str, config: ExternalConfig) -> nn.Module:
    models = _imported("torchgeo.models")
    return models.get_model(name.split("_Weights")[0].lower(), weights=models.get_weight(name), num_classes=0)
