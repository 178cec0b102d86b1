"""What both forms of EuroSAT share: its classes, its files and its published splits.

A split is read from `eurosat*-{train,val,test}.txt`, one file name a line, where these lie beside the classes: the usual
one (16,200 / 5,400 / 5,400; Neumann et al. 2019, arXiv 1911.06721) or the spatial one.
"""

from collections.abc import Iterable
from pathlib import Path

from pipeline.chips import walk
from pipeline.errors import InputError
from pipeline.labels import Label

CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial",
    "Pasture", "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
LABELS = {"eurosat": Label("class", "tile", CLASSES)}
PLACES_PER_SHARD = 512
SPLITS = ("train", "val", "test")


def patches(folder: str, suffix: str) -> dict[str, str]:
    """Return {patch: its file}."""
    found = {Path(path).stem: path for path in walk(folder, suffix)}
    found = {name: path for name, path in found.items() if class_of(name) in CLASSES and Path(path).parent.name == class_of(name)}
    if not found:
        expected = f"<class>/<class>_<number>{suffix}, classes {', '.join(CLASSES)}"
        raise InputError(f"no EuroSAT patch under '{folder}'; expected {expected}")
    return found


def class_of(name: str) -> str:
    return name.rpartition("_")[0]


def published_split(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Return the split that text files beside the classes state; empty where there are none."""
    files = {Path(path): Path(path).stem.rpartition("-")[::2] for path in walk(folder, ".txt")}
    files = {path: (kind, split) for path, (kind, split) in files.items() if kind.startswith("eurosat") and split in SPLITS}
    if not files:
        return {}
    kinds = sorted({kind for kind, _ in files.values()})
    if len(kinds) > 1:
        raise InputError(f"'{folder}' has the splits {', '.join(kinds)}; leave the files of one")
    stated = {Path(line).stem: split for path, (_, split) in files.items() for line in path.read_text().split()}
    if missing := [name for name in names if name not in stated]:
        raise InputError(f"{len(missing)} patches such as '{missing[0]}' are in none of the split files of '{folder}'")
    return {name: stated[name] for name in names}
