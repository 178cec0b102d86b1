"""Labels: what is known of a tile or of each of its pixels.

Decides what kinds of labels there are and how those of pixels lie in memory. Where they are stored is `archive`'s, which
data set has which is its layout's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError


@dataclass(frozen=True)
class Label:
    """What a label means. `scope` 'tile': true of a tile at its time; 'site': of a site, about its dates together.

    `kind` says what a tile carries: 'class' (index into `classes`), 'binary', 'fraction' (0..1), 'multilabel' (indices of
    all classes that are there), or 'map' (an index into `classes` for every labelled pixel).
    """

    kind: str
    scope: str
    classes: tuple[str, ...] = ()

    def flags(self) -> dict[str, Any]:
        """Return the attributes by which CF conventions tell the classes of an array."""
        words = [re.sub(r"\W+", "_", name).strip("_") for name in self.classes]
        return {"flag_values": list(range(len(words))), "flag_meanings": " ".join(words)}


@dataclass(frozen=True)
class LabelMap:
    """A class for every pixel: `classes` (..., y, x) uint8, without meaning where `is_labelled` (..., y, x) is False."""

    classes: np.ndarray
    is_labelled: np.ndarray

    def __getitem__(self, part: int | tuple[slice, slice]) -> "LabelMap":
        return LabelMap(self.classes[part], self.is_labelled[part])

    def counts(self, num_classes: int) -> list[int]:
        """Return the number of labelled pixels of each class."""
        counts = np.bincount(self.classes[self.is_labelled], minlength=num_classes)
        if len(counts) > num_classes:
            raise ValueError(f"a label map has class {len(counts) - 1}, expected 0 to {num_classes - 1}")
        return counts.tolist()


def map_of(codes: np.ndarray, class_of: Mapping[int, int], unlabelled: Sequence[int] = (), name: str = "label") -> LabelMap:
    """Return the map of an image (y, x) of codes: `class_of` says the class of each; `unlabelled` codes have none."""
    classes, is_labelled = np.zeros(codes.shape, np.uint8), np.zeros(codes.shape, bool)
    for code, index in class_of.items():
        classes[codes == code] = index
        is_labelled |= codes == code
    if (is_known := is_labelled | np.isin(codes, unlabelled)).all():
        return LabelMap(classes, is_labelled)
    found = ", ".join(str(code) for code in np.unique(codes[~is_known])[:5])
    raise InputError(f"{name} has the values {found}; expected {', '.join(map(str, [*class_of, *unlabelled]))}")
