"""BigEarthNet: Sentinel-2 L2A and Sentinel-1 patches of Europe with several land-cover classes each.

v1: Sumbul et al., GRSM 2021 (590,326 patches, labels in each patch's JSON, 43 classes and 19 made of them). v2: Clasen et
al., arXiv 2407.03653 (549,488 pairs, `metadata.parquet`, 19 classes). Both: 1200 x 1200 m in UTM, a folder per patch with
one file per band, `<patch>/<patch>_B02.tif` of 120, 60 or 20 px (reflectance x 10000, no offset) and `_VV.tif`, `_VH.tif` of
120 px (dB), in any folders around; of v2 also `Reference_Maps/.../<patch>_reference_map.tif`, CORINE codes at 10 m. A patch
is a place; labels are about whole patches, so only tiles of `--site-size-m 1200` have them, and of maps those of any size.

Pairs and splits: of v2 from `metadata.parquet`; of v1 from `{train,val,test}.csv` or `bigearthnet-*.csv` (Sentinel-2
patch, Sentinel-1 patch), which leave patches with snow and clouds out, and so does this. Without them pairs are
read from the Sentinel-1 patches' JSON, and patches of one acquisition go to one split.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.archive import NUM_READERS
from pipeline.chips import REFLECTANCE, cut_tiles, read_bands, read_chip
from pipeline.datasets._corine import CLASSES_19, CLASSES_43, GROUP_OF, GROUP_OF_CODE
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap, map_of
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile
from pipeline.splits import split_places

LABELS = {
    "bigearthnet_43": Label("multilabel", "tile", CLASSES_43),
    "bigearthnet_19": Label("multilabel", "tile", CLASSES_19),
    "bigearthnet_cover": Label("map", "tile", CLASSES_19),
}
PLACES_PER_SHARD = 128
SIZE_M = 1200
S1, S2 = "sentinel1_grd", "sentinel2_l2a"
SCALE = {S1: 1.0, S2: REFLECTANCE}
PATCH = {
    S1: re.compile(r"S1[AB]_IW_GRDH_1SDV_\d{8}T\d{1,6}_\w{5}_\d+_\d+"),
    S2: re.compile(r"S2[AB]_MSIL2A_\d{8}T\d{1,6}(_N\d{4}_R\d{3}_T\w{5})?_\d+_\d+"),
}
TIME = re.compile(r"_(\d{8})T(\d+)_")  # v1 writes some hours without their leading zero
SPLIT_FILE = re.compile(r"(?:bigearthnet[-_])?(train|val|test)\.csv")
SPLITS = {"train": "train", "validation": "val", "test": "test"}
METADATA = "metadata.parquet"
MAPS = "Reference_Maps"


@dataclass(frozen=True)
class Patch:
    """Folders of a patch by sensor; of v2 its `labels` (19 classes) and the folder of its `cover`; `split` where it is said."""

    folders: dict[str, str]
    labels: tuple[str, ...] | None = None
    cover: str | None = None
    split: str | None = None


def sensors() -> dict[str, Sensor]:
    return {name: load_sensor(name) for name in (S1, S2)}


def places(folder: str) -> dict[str, Patch]:
    """Return {name of the Sentinel-2 patch (without one, of the Sentinel-1 patch): its files}."""
    folders: dict[str, dict[str, str]] = {S1: {}, S2: {}, MAPS: {}}
    tables: dict[str, str] = {}
    for kind, entry in _walk(folder):
        (folders[kind] if kind else tables)[entry.name] = entry.path
    if not (folders[S1] or folders[S2]):
        raise InputError(f"no BigEarthNet patch under '{folder}'; expected folders such as S2A_MSIL2A_20170613T101031_0_45")
    if METADATA in tables:
        return _with_metadata(folders, tables[METADATA])
    lists = {match[1]: path for name, path in tables.items() if (match := SPLIT_FILE.fullmatch(name))}
    rows = [(row, split) for split, path in lists.items() for row in _rows(path)]
    pairs = {row[0]: row[1] for row, _ in rows if len(row) > 1} or _pairs_in_json(folders[S1])
    stated = {row[0]: split for row, split in rows}
    found = {name: Patch({S2: path}, split=stated.get(name)) for name, path in folders[S2].items()}
    alone = dict(folders[S1])
    for name, partner in pairs.items():
        if name in found and partner in alone:
            found[name] = replace(found[name], folders=found[name].folders | {S1: alone.pop(partner)})
    return found | {name: Patch({S1: path}) for name, path in alone.items()}


def splits(folder: str, found: dict[str, Patch]) -> dict[str, str]:
    """Return the published split of the patches that it names, or one by acquisitions."""
    published = {name: patch.split for name, patch in found.items() if patch.split}
    return published or split_places(found, lambda name: name.rsplit("_", 2)[0])


def tiles(place: str, found: Patch, grid: Grid) -> list[Tile]:
    """Return the tiles of one patch."""
    labels = _labels(found) if grid.site_size_m == SIZE_M else {}
    maps = {"bigearthnet_cover": _cover(found.cover)} if found.cover else {}
    result = []
    for name, folder in found.folders.items():
        sensor, patch = load_sensor(name), Path(folder).name
        chip = read_bands([f"{folder}/{patch}_{band}.tif" for band in sensor.band_names], SCALE[name])
        for cover in maps.values():
            chip.require_grid(cover.classes.shape, None, f"'{folder}'")
        result += cut_tiles(chip, sensor, grid, f"bigearthnet/{place}", patch, _time(patch), labels=lambda _: labels, maps=maps)
    return result


def _walk(folder: str, of_maps: bool = False) -> Iterator[tuple[str | None, os.DirEntry[str]]]:
    """Yield (sensor or MAPS, folder) of every patch, without looking into it, and (None, file) of every file around them."""
    if not os.path.isdir(folder):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if sensor := next((name for name, pattern in PATCH.items() if pattern.fullmatch(entry.name)), None):
            yield MAPS if of_maps else sensor, entry
        elif entry.is_dir():
            yield from _walk(entry.path, of_maps or entry.name == MAPS)
        else:
            yield None, entry


def _with_metadata(folders: dict[str, dict[str, str]], path: str) -> dict[str, Patch]:
    """Return the patches of v2 that its metadata names and that are there."""
    try:
        rows = pq.read_table(path, columns=["patch_id", "labels", "split", "s1_name"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read '{path}': {' '.join(str(error).split())}") from None
    found = {}
    for row in rows:
        names = {S2: row["patch_id"], S1: row["s1_name"]}
        if present := {sensor: folders[sensor][name] for sensor, name in names.items() if name in folders[sensor]}:
            if row["split"] not in SPLITS:
                raise InputError(f"'{path}' has split '{row['split']}'; expected {', '.join(SPLITS)}")
            cover = folders[MAPS].get(row["patch_id"])
            found[row["patch_id"]] = Patch(present, tuple(row["labels"]), cover, SPLITS[row["split"]])
    if not found:
        raise InputError(f"'{path}' names none of the patches beside it; expected the metadata of these patches")
    return found


def _rows(path: str) -> list[list[str]]:
    with open(path, newline="") as file:
        return [row for row in csv.reader(file) if row]


def _pairs_in_json(radar: dict[str, str]) -> dict[str, str]:
    """Return {Sentinel-2 patch: Sentinel-1 patch}, as the latter say."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        partners = pool.map(_partner, radar.values())
    return {partner: name for name, partner in zip(radar, partners) if partner}


def _partner(folder: str) -> str | None:
    try:
        return _metadata(folder).get("corresponding_s2_patch")
    except InputError:  # whoever reads the patch says so
        return None


def _metadata(folder: str) -> dict[str, Any]:
    path = Path(folder) / f"{Path(folder).name}_labels_metadata.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read '{path}': {error}") from None


def _labels(found: Patch) -> dict[str, list[int]]:
    """Return the classes of v1 in both nomenclatures, of v2 in the one that it has."""
    names = _metadata(next(iter(found.folders.values())))["labels"] if found.labels is None else found.labels
    known = CLASSES_43 if found.labels is None else CLASSES_19
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"label '{unknown[0]}' is none of BigEarthNet's {len(known)} classes")
    indices = sorted(known.index(name) for name in names)
    if found.labels is not None:
        return {"bigearthnet_19": indices}
    grouped = sorted({GROUP_OF[name] for name in names if name in GROUP_OF})  # 57 patches have none of the 19
    return {"bigearthnet_43": indices} | ({"bigearthnet_19": grouped} if grouped else {})


def _cover(folder: str) -> LabelMap:
    """Return the map of the 19 classes; codes that are in none of them are not labelled."""
    codes = read_chip(f"{folder}/{Path(folder).name}_reference_map.tif", 1, zeros="data").pixels[0]
    return map_of(codes, GROUP_OF_CODE, np.unique(codes).tolist())


def _time(patch: str) -> datetime:
    day, clock = TIME.search(patch).groups()  # type: ignore[union-attr]  # the name has matched PATCH
    return datetime.strptime(day + clock.zfill(6), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
