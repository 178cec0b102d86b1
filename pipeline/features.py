"""Maps of features kept beside an archive, in tiles like pixels: what a teacher makes of every tile, so that it need not run again.

ARCHIVE/features/<model>/features.json says of which model, sensors and stages they are; <model>/<shard>/<sensor>/<stage> are arrays
(tile, D, y, x) float16; <model>/<shard>.json, written last, names the content of the shard that they are of.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr

from pipeline import storage
from pipeline.archive import Archive
from pipeline.errors import InputError
from pipeline.shard import write_array

FOLDER, ABOUT = "features", "features.json"
MODEL_DIGITS = 16
"""Of the SHA-256 of a model's weights, in the folder's name."""


def features_url(archive: Archive, model_digest: str) -> str:
    return storage.join(archive.url, FOLDER, model_digest[:MODEL_DIGITS])


def stage_name(stage: int) -> str:
    return f"stage{stage}"


def write_features(url: str, archive: Archive, shard: str, maps: dict[str, list[np.ndarray]]) -> None:
    """Write the maps (tile, D, y, x) of each sensor's stages, for the tiles of one shard in the order of their rows."""
    with storage.staged_folder(storage.join(url, shard)) as folder:
        group = zarr.open_group(str(folder), mode="w", zarr_format=3)
        for name, stages in maps.items():
            part = group.create_group(name)
            for stage, values in enumerate(stages):
                write_array(part, stage_name(stage), values.astype(np.float16), ("tile", "feature", "y", "x"), {})
    storage.write_json(storage.join(url, f"{shard}.json"), {"shard_digest": shard_digest(archive, shard)})


def shard_digest(archive: Archive, shard: str) -> str:
    return str(archive.rows(shard)["shard_digest"].iloc[0])


def missing(url: str, archive: Archive) -> list[str]:
    """Return the shards without features, or with those of what they were before."""
    known, absent = set(storage.names(url)), []
    for shard in archive.published():
        name = f"{shard}.json"
        if name not in known or storage.read_json(storage.join(url, name))["shard_digest"] != shard_digest(archive, shard):
            absent.append(shard)
    return absent


def require_features(url: str, archive: Archive, sensors: Sequence[str]) -> None:
    """Raise InputError unless `url` has the features of all tiles of `sensors`."""
    hint = "run 'terraloom embed TEACHER_RUN ARCHIVE --into-archive True'"
    about = describe(url)
    if not about or (absent := [name for name in sensors if name not in about["sensors"]]):
        raise InputError(f"archive '{archive.url}' has no features of the teacher {f'of {absent[0]}' if about else ''}; {hint}")
    if stale := missing(url, archive):
        raise InputError(f"archive '{archive.url}' has no features of {len(stale)} shards, such as {stale[0]}; {hint}")


def describe(url: str) -> dict[str, Any]:
    """Return what features.json says; nothing where there is none."""
    about = storage.join(url, ABOUT)
    return storage.read_json(about) if storage.exists(about) else {}


def write_about(url: str, model: str, sensors: Sequence[str], num_stages: int) -> None:
    storage.write_json(storage.join(url, ABOUT), {"model": model, "sensors": [*sensors], "stages": num_stages})
