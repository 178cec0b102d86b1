"""What layouts of ready-made chips share: cutting an image into sites, and which place goes to which split."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import InputError

SPLIT_SHARES = (("train", 0.6), ("val", 0.15), ("test", 0.25))


def cut(shape_px: tuple[int, ...], size_px: int) -> Iterator[tuple[str, tuple[slice, slice]]]:
    """Yield ('r<row>c<column>', window) for each whole `size_px` square; a narrower rest is left out."""
    for i in range(shape_px[0] // size_px):
        for j in range(shape_px[1] // size_px):
            yield f"r{i}c{j}", (slice(i * size_px, (i + 1) * size_px), slice(j * size_px, (j + 1) * size_px))


def split_places(places: Sequence[str]) -> dict[str, str]:
    """Return place -> split: 60 / 15 / 25 % of the places in an order fixed by their names' hashes."""
    ordered = sorted(places, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    limits = np.cumsum([share for _, share in SPLIT_SHARES]) * len(ordered)
    return {name: SPLIT_SHARES[int(np.searchsorted(limits, index + 0.5))][0] for index, name in enumerate(ordered)}


def read_image(path: Path) -> np.ndarray:
    """Return a PNG or JPEG as (band, y, x) in its own dtype."""
    try:
        pixels = np.asarray(Image.open(path))
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"cannot read '{path}': {error}") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def require_folder(folder: str, *children: str) -> Path:
    """Return `folder` as a path, or say which of its expected children is missing."""
    root = Path(folder)
    missing = [name for name in children if not (root / name).exists()]
    if not root.is_dir() or missing:
        found = f"lacks {', '.join(missing)}" if root.is_dir() else "does not exist"
        raise InputError(f"folder '{folder}' {found}; expected the layout's own folder ({', '.join(children)})")
    return root
