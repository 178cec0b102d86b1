"""Which place of a data set of ready-made chips goes to which split, where its authors do not say, or do not say all.

By hashes of names alone, so that a place keeps its split whatever else is added; what is near each other is kept together
by giving it one group. Scenes are split by the grid (`grid`).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pyproj import Transformer

from pipeline.archive import NUM_READERS
from pipeline.errors import InputError
from pipeline.raster import open_raster

SPLIT_SHARES = (("train", 0.6), ("val", 0.15), ("test", 0.25))
HELD_OUT_SHARE = 0.2


def split_places(places: Iterable[str], group_of: Callable[[str], str] = str) -> dict[str, str]:
    """Return place -> split: 60 / 15 / 25 % by the hash of each place's group, whatever other places there are.

    Places of one group stay together. Of three groups or more no split is empty: a missing one gets the group that is
    nearest to it, from the split that has most.
    """
    groups = {place: group_of(place) for place in places}
    position = {group: place_on_line(group) for group in sorted(set(groups.values()))}
    limits = np.cumsum([0, *(share for _, share in SPLIT_SHARES)])
    split = {group: SPLIT_SHARES[int(np.searchsorted(limits[1:-1], at, "right"))][0] for group, at in position.items()}
    for index, (name, _) in enumerate(SPLIT_SHARES):
        if len(split) >= len(SPLIT_SHARES) and name not in split.values():
            held = list(split.values())
            largest = max(set(held), key=lambda other: (held.count(other), other))
            middle = (limits[index] + limits[index + 1]) / 2
            split[min((g for g in split if split[g] == largest), key=lambda group: abs(position[group] - middle))] = name
    return {place: split[group] for place, group in groups.items()}


def hold_out(stated: Mapping[str, str], group_of: Callable[[str], str] = str) -> dict[str, str]:
    """Return a published split that has no 'val' with a fifth of the groups in 'train' made 'val', by their hashes."""
    position = {group_of(place): place_on_line(f"val/{group_of(place)}") for place, split in stated.items() if split == "train"}
    if len(position) < 2:
        return dict(stated)
    first, *_, last = sorted(position, key=position.__getitem__)  # one is always held out, one never
    held = {group for group, at in position.items() if at < HELD_OUT_SHARE} - {last} | {first}
    return {p: "val" if split == "train" and group_of(p) in held else split for p, split in stated.items()}


def place_on_line(name: str) -> float:
    """Return a place in 0..1 that depends on nothing but the name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16


def ground_squares(paths: Mapping[str, str], side_deg: float) -> dict[str, str]:
    """Return place -> square of `side_deg` degrees that the centre of its GeoTIFF is in; its own name where it has none.

    Only headers are read.
    """
    with ThreadPoolExecutor(NUM_READERS) as pool:
        centres = dict(zip(paths, pool.map(_centre, paths.values())))
    squares = {place: place for place in paths}
    for crs in sorted({found[0] for found in centres.values() if found}):
        chosen = [place for place, found in centres.items() if found and found[0] == crs]
        xy = np.array([found[1:] for found in centres.values() if found and found[0] == crs])
        lonlat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*xy.T)
        squares |= {place: f"{lon // side_deg:.0f}_{lat // side_deg:.0f}" for place, lon, lat in zip(chosen, *lonlat)}
    return squares


def _centre(path: str) -> tuple[str, float, float] | None:
    try:
        with open_raster(path) as source:
            return (str(source.crs), *(source.transform @ (source.width / 2, source.height / 2))) if source.crs else None
    except InputError:  # whoever reads its pixels says so
        return None
