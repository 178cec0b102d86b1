"""Blocks of an image give what the whole image gives, in bounded memory."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.raster import BATCH_PIXELS, RasterTask, block_cells, block_name, embed_block, read_block
from models.encoder import Encoder, EncoderConfig
from models.sensor import SensorSpec
from models.swin import SwinConfig
from models.vit import VitConfig
from pipeline.blend import Blend, Span
from pipeline.errors import InputError
from pipeline.mosaic import Mosaic, ground_of, mosaics
from pipeline.scan import scan
from pipeline.stac import scenes_of
from tests.rasters import RADAR_TAGS, counts, write

SPEC = SensorSpec("sentinel1_grd", "active", "sigma0", "dB", 10.0, ("VV", "VH"), (None, None), (-15.0, -15.0), (6.0, 6.0))
SIDE = 32
"""Cells along a side of the image."""


def encoder(backbone: SwinConfig | VitConfig) -> Encoder:
    made = Encoder(EncoderConfig(backbone, 20.0, (SPEC,)), torch.Generator().manual_seed(0)).eval()
    for parameter in made.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return made


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swin")
    encoder(SwinConfig(embed_dim=8, depths=(2, 2), num_heads=(1, 2), window=2)).save(folder)
    return folder


def radar(folder: Path, pixels: np.ndarray) -> Mosaic:
    path = write(folder / "S1_image.tif", pixels, nodata=-32768, tags=RADAR_TAGS, names=("VV", "VH"))
    items, refused = scan(str(folder), only=str(path))
    assert refused == {}
    return mosaics(scenes_of(items), ["sentinel1_grd"])["sentinel1_grd"]


def embedded(task: RasterTask, size: int) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for block in task.blend.blocks(size):
        embed_block(task, block)
        parts.append((block, *read_block(task, block)))
    width = parts[0][1].shape[-1]
    values, is_valid = np.full((*task.blend.shape, width), np.nan, np.float32), np.zeros(task.blend.shape, bool)
    for block, found, known in parts:
        place = tuple(slice(a, b) for a, b in zip(block.start, block.stop))
        values[place], is_valid[place] = found, known
    return values, is_valid


def task_of(model: Path, mosaic: Mosaic, blend: Blend, folder: Path, cell_m: float = 40.0) -> RasterTask:
    ground = ground_of({"sentinel1_grd": mosaic}, cell_m, blend.window)
    assert ground.shape == blend.shape
    return RasterTask(str(model), mosaic, ground, blend, str(folder))


def test_blended_windows_equal_the_whole_image(swin: Path, tmp_path: Path) -> None:
    """Where windows begin where the encoder's own do, and show as much around what is kept as it looks at.

    This one looks 1 + 1 tokens far in its first stage and 2 + 2 in the second: 3 cells of two tokens, less than the margin.
    """
    pixels = counts(size=SIDE * 4)
    pixels[:, 40:70, 90:120] = -32768
    mosaic = radar(tmp_path / "in", pixels)
    shape = (SIDE, SIDE)
    whole, is_known = embedded(task_of(swin, mosaic, Blend(shape, SIDE, 0), tmp_path / "whole"), SIDE)
    assert 0 < (~is_known).sum() < 80
    blend = Blend(shape, 16, 12, 4)
    values, found = embedded(task_of(swin, mosaic, blend, tmp_path / "blended"), 12)
    assert np.array_equal(found, is_known)
    np.testing.assert_allclose(values[found], whole[found], rtol=1e-3, atol=1e-4)
    careless, _ = embedded(task_of(swin, mosaic, Blend(shape, 16, 0), tmp_path / "careless"), 16)
    assert np.abs(careless - whole)[found].max() > 0.05


def test_blocks_do_not_show(swin: Path, tmp_path: Path) -> None:
    mosaic = radar(tmp_path / "in", counts(size=SIDE * 4))
    task = task_of(swin, mosaic, Blend((SIDE, SIDE), 8, 4), tmp_path / "small")
    small, _ = embedded(task, 8)
    large, _ = embedded(replace(task, blocks_url=str(tmp_path / "large")), 20)
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)


def test_a_transformer_that_looks_everywhere_has_no_seams(tmp_path: Path) -> None:
    """Its windows are no part of a larger whole, but between neighbours nothing jumps where a window ends."""
    model = tmp_path / "model"
    encoder(VitConfig(embed_dim=16, depth=2, num_heads=2)).save(model)
    y, x = np.mgrid[: SIDE * 2, : SIDE * 2] / (SIDE * 2)
    smooth = np.stack([np.sin(6 * x) + y, np.cos(5 * y) - x])
    mosaic = radar(tmp_path / "in", (-1500 + 600 * smooth).astype(np.int16))

    def jumps(blend: Blend, name: str) -> tuple[float, float]:
        values, _ = embedded(task_of(model, mosaic, blend, tmp_path / name, cell_m=20.0), SIDE)
        step = np.linalg.norm(np.diff(values, axis=1), axis=-1).mean(0)  # between columns
        ends = sorted({s for s in blend.starts(1) if s} | {s + blend.window for s in blend.starts(1) if s + blend.window < SIDE})
        is_end = np.isin(np.arange(1, SIDE), ends)
        return float(step[is_end].mean()), float(step[~is_end].mean())

    at_ends, elsewhere = jumps(Blend((SIDE, SIDE), 8, 4), "blended")
    assert at_ends < 1.1 * elsewhere
    at_ends, elsewhere = jumps(Blend((SIDE, SIDE), 8, 0), "apart")
    assert at_ends > 1.3 * elsewhere


def test_blocks_fit_the_memory_that_is_allowed(swin: Path) -> None:
    made = Encoder.load(swin)
    blend = Blend((10_000, 10_000), 16, 8)
    sizes = [block_cells(blend, made, "sentinel1_grd", mib * 2**20) for mib in (8, 64, 256)]
    assert sizes == sorted(set(sizes))
    assert all(size % 8 == 0 for size in sizes)
    with pytest.raises(InputError, match=r"takes \d+ MiB, --memory-mib allows 0"):
        block_cells(blend, made, "sentinel1_grd", 2**10)


def test_a_block_is_written_whole(swin: Path, tmp_path: Path) -> None:
    mosaic = radar(tmp_path / "in", counts(size=SIDE * 4))
    task = task_of(swin, mosaic, Blend((SIDE, SIDE), 8, 4), tmp_path / "blocks")
    embed_block(task, Span((0, 0), (8, 8)))
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == [block_name(Span((0, 0), (8, 8)))]


def test_a_task_holds_no_more_than_it_may(swin: Path, tmp_path: Path) -> None:
    """Of arrays, whatever the size of the image: what is allowed, and a batch of windows."""
    made, allowed = Encoder.load(swin), 2 * 2**20
    batch = BATCH_PIXELS * 4 * 3
    peaks = []
    for side in (SIDE * 4, SIDE * 6):
        mosaic = radar(tmp_path / str(side), counts(size=side * 4))
        task = task_of(swin, mosaic, Blend((side, side), 8, 4), tmp_path / f"blocks{side}")
        size = block_cells(task.blend, made, "sentinel1_grd", allowed)
        assert 2 * size < side
        middle = Span((size, size), (min(2 * size, side), min(2 * size, side)))
        embed_block(task, middle)  # imports and caches are no part of it
        tracemalloc.start()
        embed_block(task, middle)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < allowed + batch
    assert peaks[1] < 1.2 * peaks[0]
