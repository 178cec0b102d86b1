"""What a co-registration job leaves in its archive's folder `reports`: the displacement of every scene, and pictures.

Every job writes files of its own, so that jobs which run at the same time lose nothing of each other's. Where several
jobs registered one scene, the last one's word counts.
"""

import io
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from pipeline import storage
from pipeline.alignment import Alignment
from pipeline.archive import Archive
from pipeline.coregister import Comparison, CoregisterConfig, read_structure
from pipeline.registration import Registration
from pipeline.scene import Scene

NUM_PICTURES = 4
PICTURE_PX = 192
PREFIX = "coregister-"


def save_report(
    archive: Archive,
    scenes: list[Scene],
    chosen: dict[str, Scene | None],
    alignments: dict[str, Alignment],
    refused: dict[str, str],
    config: CoregisterConfig,
) -> None:
    """Keep what one job found for each scene and, for the page, pictures; nothing where it had nothing to look at."""
    if not scenes and not refused:
        return
    name = f"{PREFIX}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:4]}"
    url = storage.join(archive.url, "reports", name)
    report = {"scenes": {s.id: _record(s, alignments[s.id]) for s in scenes}, "refused": refused, "settings": asdict(config)}
    storage.write_json(f"{url}.json", report)
    if pictures := _pictures(scenes, chosen, alignments):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **pictures)
        storage.write_bytes(f"{url}.npz", buffer.getvalue())


def read_reports(archive: Archive) -> dict[str, Any]:
    """Return what all jobs together found: 'scenes' by id, and 'refused' with those that no later job could read either."""
    scenes: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for url in _urls(archive, ".json"):
        report = storage.read_json(url)
        scenes |= report["scenes"]
        refused = {name: why for name, why in refused.items() if name not in report["scenes"]} | report["refused"]
    return {"scenes": scenes, "refused": refused}


def read_pictures(archive: Archive) -> dict[str, np.ndarray]:
    """Return the newest pictures, by '<scene>/<reference, before or after>'."""
    urls = _urls(archive, ".npz")
    if not urls:
        return {}
    with np.load(io.BytesIO(storage.read_bytes(urls[-1]))) as arrays:
        return dict(arrays)


def _urls(archive: Archive, ending: str) -> list[str]:
    """Return what jobs left, the oldest first."""
    folder = storage.join(archive.url, "reports")
    return [storage.join(folder, name) for name in storage.names(folder) if name.startswith(PREFIX) and name.endswith(ending)]


def followed(scene: Scene, chosen: dict[str, Scene | None]) -> Scene:
    reference = chosen[scene.id]
    assert reference is not None
    return reference


def _pictures(scenes: list[Scene], chosen: dict[str, Scene | None], alignments: dict[str, Alignment]) -> dict[str, Any]:
    """Return small reference / before / after images of the scenes that moved most, one per sensor first."""
    moved = [s for s in scenes if alignments[s.id].field]
    moved.sort(key=lambda s: -float(np.hypot(*_shift_of_centre(s, alignments[s.id]).shift_m)))
    firsts = {s.sensor.name: s for s in reversed(moved)}
    ordered = [*firsts.values(), *(s for s in moved if s not in firsts.values())][:NUM_PICTURES]
    arrays = {}
    for scene in ordered:
        reference = followed(scene, chosen)
        whole = Comparison(scene, reference, alignments[reference.id], 0.0).grid
        geobox = max(_picture_windows(whole), key=lambda window: _contrast(reference, window))
        arrays[f"{scene.id}/reference"] = read_structure(reference, geobox, alignments[reference.id])[0].mean(axis=0)
        arrays[f"{scene.id}/before"] = read_structure(scene, geobox)[0].mean(axis=0)
        arrays[f"{scene.id}/after"] = read_structure(scene, geobox, alignments[scene.id])[0].mean(axis=0)
    return arrays


def _picture_windows(whole: GeoBox) -> list[GeoBox]:
    """Return nine windows of a picture's size, spread over the grid."""
    starts = [[int(share * max(0, n - PICTURE_PX)) for share in (0.2, 0.5, 0.8)] for n in whole.shape]
    return [whole[y : y + PICTURE_PX, x : x + PICTURE_PX] for y in starts[0] for x in starts[1]]


def _contrast(scene: Scene, geobox: GeoBox) -> float:
    """Return how much there is to see: the spread of clear pixels, less where there are few."""
    pixels, is_valid = read_structure(scene, geobox)
    return float(pixels.mean(axis=0)[is_valid].std() * is_valid.mean()) if is_valid.any() else 0.0


def _shift_of_centre(scene: Scene, alignment: Alignment) -> Registration:
    crs = str(alignment.grid.crs) if alignment.grid else "EPSG:4326"
    return alignment.at(*scene.footprint.centroid.to_crs(crs).coords[0], crs)


def _record(scene: Scene, alignment: Alignment) -> dict[str, Any]:
    """Return what the report keeps of a scene: its shift at the centre, and the whole displacement."""
    return {
        "sensor": scene.sensor.name,
        "time": scene.time,
        **asdict(_shift_of_centre(scene, alignment)),
        "displacement": alignment.to_dict(),
    }
