"""What a run begins with in place of drawn weights: another run's, in a folder of its own, so that it needs the other no more.

The folder holds a model as `Encoder.save` writes it, and all weights of the objective. Pixels of sensors that the model knows
stay normalised as it learned them; what the objective has beyond these weights, such as the stem of a new sensor, stays drawn.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.batches import sensor_specs
from cluster.job import Job
from models.encoder import Encoder, EncoderConfig
from models.sensor import SensorSpec
from pipeline import storage
from pipeline.archive import Archive
from pipeline.errors import InputError

FOLDER = "start"
"""In a run."""
WEIGHTS = "objective.safetensors"
"""Beside a model: all weights of the objective that it was trained with."""
ENCODER = "encoder."
"""Before the encoder's names in the objective's."""


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write an objective's weights to `folder`."""
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


def load_weights(url: str) -> dict[str, Tensor]:
    """Return what `save_weights` wrote."""
    with storage.local_copy(url) as folder:
        return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def write_start(url: str, encoder: Encoder, weights: dict[str, Tensor], source: str) -> None:
    """Publish the folder at `url`."""
    with storage.staged_folder(url) as folder:
        encoder.save(folder, {"start_from": source})
        save_weights(folder, weights)


def sensors_of(job: Job, archive: Archive) -> tuple[SensorSpec, ...]:
    """Return what the job's encoder must know of each sensor: statistics of the start where it has any, else the archive's."""
    specs = sensor_specs(archive)
    if not job.start:
        return specs
    content = json.loads(storage.read_bytes(storage.join(job.start, "config.json")))
    known = {spec.name: spec for spec in EncoderConfig.from_dict(content["encoder"]).sensors}
    for spec in specs:
        begun = known.get(spec.name)
        if begun and (begun.bands, begun.unit, begun.gsd_m) != (spec.bands, spec.unit, spec.gsd_m):
            raise InputError(
                f"the start knows {spec.name} as {', '.join(begun.bands)} in {begun.unit} at {begun.gsd_m:g} m, the archive has "
                f"{', '.join(spec.bands)} in {spec.unit} at {spec.gsd_m:g} m; use an archive of the same bands"
            )
    return tuple(known.get(spec.name, spec) for spec in specs)


def require_fit(objective: nn.Module, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return how many tensors the start fills and which it leaves; InputError where it has not one of an encoder like this."""
    own = objective.state_dict()
    of_encoder = {name: tensor for name, tensor in weights.items() if name.startswith(ENCODER) and name in own}
    for name, tensor in of_encoder.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"'{name}' of the start has shape {tuple(tensor.shape)}, the recipe's {tuple(own[name].shape)}; "
                "use the recipe and the sizes that the start was trained with"
            )
    if not of_encoder:
        raise InputError("the start has no weight of the recipe's encoder; use a recipe with the same backbone")
    taken = _fitting(objective, weights)
    drawn = sorted(set(own) - set(taken))
    return {"weights": len(taken), "drawn": drawn, "not_taken": sorted(set(weights) - set(taken))}


def begin(objective: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the objective what fits of `weights`; return that."""
    taken = _fitting(objective, weights)
    objective.load_state_dict(taken, strict=False)
    return taken


def _fitting(objective: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    own = objective.state_dict()
    return {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
