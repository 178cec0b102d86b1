"""Writing small files of published forms."""

from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import Affine, from_origin

CORNER = from_origin(500_000, 5_000_000, 10, 10)


def write_tif(
    path: Path, pixels: np.ndarray, crs: str | None = "EPSG:32633", transform: tuple[float, ...] = CORNER, **profile: object
) -> Path:
    """Write (band, y, x) or (y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=Affine(*transform[:6]), **shape, **profile) as out:
        out.write(pixels)
    return path


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write (y, x) or (y, x, band) as the PNG or JPEG that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def truncate(path: Path, share: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
