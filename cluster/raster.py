"""Embeddings of an image of any size, block by block: what one Ray task does.

A task holds the pixels around its block and the block's values, and one batch of windows; `block_cells` chooses blocks that fit.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from models.batch import Batch, Tiles
from models.encoder import Embedding, Encoder
from pipeline import storage
from pipeline.blend import Blend, BlendedBlock, Span
from pipeline.errors import InputError
from pipeline.mosaic import Ground, Mosaic
from pipeline.sensors import Sensor

BATCH_PIXELS = 2**18
"""Pixels of the windows that go through an encoder together: 64 windows of 64 x 64."""
COPIES = 3
"""Of a block's pixels while they are read: as the file holds them, as they are warped, in the sensor's unit."""


@dataclass(frozen=True)
class RasterTask:
    """What every task is given of one sensor."""

    model_url: str
    mosaic: Mosaic
    ground: Ground
    blend: Blend
    blocks_url: str

    def path(self, block: Span) -> str:
        return storage.join(self.blocks_url, block_name(block))


def block_name(block: Span) -> str:
    return f"{block.start[0]:06d}_{block.start[1]:06d}.npz"


def cell_m(encoder: Encoder) -> float:
    """Return the side of a cell of the last map, metres."""
    return encoder.config.token_size_m * encoder.config.backbone.stride


def block_cells(blend: Blend, encoder: Encoder, sensor: str, memory_bytes: float) -> int:
    """Return the side of the largest blocks, in cells, that a task can hold in `memory_bytes`."""
    spec, net = encoder.spec(sensor), encoder.config.backbone
    pixels_per_cell = (cell_m(encoder) / spec.gsd_m) ** 2
    step = blend.window - blend.overlap

    def needed(size: int) -> float:
        pixels = blend.widest(size) ** 2 * pixels_per_cell * (4 * spec.num_bands * COPIES + 4)
        return pixels + 2 * 4 * size**2 * net.width(net.num_stages - 1)

    if needed(step) > memory_bytes:
        raise InputError(
            f"a block of {sensor} takes {needed(step) / 2**20:.0f} MiB, --memory-mib allows {memory_bytes / 2**20:.0f}; "
            f"allow more, or use smaller windows"
        )
    size = step
    while size < max(blend.shape) and needed(size + step) <= memory_bytes:
        size += step
    return size


def embed_block(task: RasterTask, block: Span) -> None:
    """Write the block's embeddings (y, x, D) float32 and where they are known (y, x), all at once."""
    torch.set_num_threads(1)
    encoder = _loaded(task.model_url)
    embeddings, is_valid = _blended(task, encoder, block)
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=embeddings, is_valid=is_valid)
    storage.write_bytes(task.path(block), buffer.getvalue())


def read_block(task: RasterTask, block: Span) -> tuple[np.ndarray, np.ndarray]:
    """Return what `embed_block` wrote."""
    with np.load(io.BytesIO(storage.read_bytes(task.path(block)))) as found:
        return found["embeddings"], found["is_valid"]


def _blended(task: RasterTask, encoder: Encoder, block: Span) -> tuple[np.ndarray, np.ndarray]:
    sensor, net, blend = task.mosaic.sensor, encoder.config.backbone, task.blend
    around, scale = blend.around(block), round(task.ground.cell_m / sensor.gsd_m)
    pixels, is_known = task.mosaic.read(task.ground.geobox(around, sensor.gsd_m))
    found = BlendedBlock(blend, block, net.width(net.num_stages - 1))
    shown = []
    for window in blend.windows(block):
        place = tuple(slice(part.start * scale, part.stop * scale) for part in window.within(around))
        if is_known[place].any():
            shown.append((window, place))
    for part in _batches(shown, (blend.window * scale) ** 2):
        stacked = torch.from_numpy(np.stack([pixels[:, *place] for _, place in part]))
        known = torch.from_numpy(np.stack([is_known[place] for _, place in part]))
        lonlat_deg = task.ground.lonlat_deg([window for window, _ in part])
        embedding = encode_windows(encoder, sensor, stacked, known, task.mosaic.time_days, lonlat_deg)
        for (window, _), values, is_valid in zip(part, embedding.grid[:, 0].numpy(), embedding.is_valid[:, 0].numpy()):
            found.add(window, values, is_valid)
    return found.result()


def encode_windows(
    encoder: Encoder, sensor: Sensor, pixels: Tensor, is_valid: Tensor, time_days: float, lonlat_deg: np.ndarray
) -> Embedding:
    """Return what an encoder makes of windows (N, C, Y, X) in the sensor's unit, is_valid (N, Y, X), of one date; lonlat (N, 2)."""
    num = len(pixels)
    times = torch.full((num, 1), time_days, dtype=torch.float64)
    present = torch.ones(num, 1, dtype=torch.bool)
    tiles = Tiles(pixels[:, None], is_valid[:, None], present, times, sensor.band_names, sensor.unit, sensor.gsd_m)
    return encoder.encode(Batch({sensor.name: tiles}, torch.from_numpy(lonlat_deg)))[sensor.name]


def _batches(shown: list, pixels_each: int) -> Iterator[list]:
    size = max(1, BATCH_PIXELS // pixels_each)
    for first in range(0, len(shown), size):
        yield shown[first : first + size]


@lru_cache(maxsize=1)
def _loaded(model_url: str) -> Encoder:
    with storage.local_copy(model_url) as folder:
        return Encoder.load(folder)
