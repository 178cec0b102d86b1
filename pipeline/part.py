"""What files give to scenes, and the STAC item that is made of the parts of one scene."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pystac
from odc.geo.geom import Geometry
from rasterio.transform import Affine

from pipeline.errors import InputError
from pipeline.sensors import Sensor

USER_MASK = "_cloud"


@dataclass(frozen=True)
class Facts:
    """What an image says of itself; None where it says nothing."""

    dtype: str
    crs: str
    transform: Affine
    shape: tuple[int, int]
    scale: float | None
    offset: float | None
    nodata: float | None
    unit: str | None


@dataclass(frozen=True)
class Part:
    """What one file, or one date of a cube's variable, gives to a scene. `mask` names a quality layer, which has no `bands`."""

    scene: tuple[str, str]
    href: str
    sensor: Sensor
    time: datetime | None
    facts: Facts
    bands: tuple[str, ...] = ()
    indexes: tuple[int, ...] = ()
    variable: str | None = None
    mask: str | None = None
    numbers: tuple[float, float, float | None, str] = (1.0, 0.0, None, "1")
    """Scale, offset, nodata and form."""
    assumed: str | None = None


def _footprint(facts: Facts) -> Geometry:
    """Return the outline of an image in lon/lat."""
    transform = facts.transform
    if not np.isfinite(tuple(transform)).all() or transform.determinant == 0 or transform == Affine.identity():
        raise InputError(f"its transform {tuple(transform)[:6]} places no pixel; expected the six numbers of an affine")
    height, width = facts.shape
    corners = [transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height), (0, 0))]
    outline = Geometry({"type": "Polygon", "coordinates": [corners]}, facts.crs)
    found = outline.to_crs("EPSG:4326", resolution=max(outline.boundingbox.span_x, outline.boundingbox.span_y) / 8)
    box = np.array(found.boundingbox.bbox)
    if not np.isfinite(box).all() or np.abs(box).max() > 360 or np.abs(box[1::2]).max() > 90 + 1e-6:
        raise InputError(f"its outline in {facts.crs} is not on the Earth; expected a CRS and a transform that fit each other")
    return found


def item_of(name: str, parts: list[Part], user_masks: set[str]) -> pystac.Item:
    images = _finest_of_each_band([part for part in parts if part.bands])
    if not images:
        raise InputError("is a quality layer of no scene here; expected the bands beside it")
    if len(dtypes := sorted({part.facts.dtype for part in images})) > 1:
        raise InputError(f"the files of its scene have different dtypes ({', '.join(dtypes)}); expected one")
    if len(sensors := sorted({part.sensor.name for part in images})) > 1:
        raise InputError(f"the files of its scene are of different sensors ({', '.join(sensors)}); expected one")
    finest = max(images, key=lambda part: part.facts.shape[0]).facts
    footprint = _footprint(finest)
    sensor = images[0].sensor
    properties = {
        "terraloom:sensor": sensor.model_dump(mode="json", exclude_defaults=True),
        "proj:code": finest.crs,
        "proj:transform": list(finest.transform)[:6],
        "proj:shape": list(finest.shape),
    }
    if assumed := next((part.assumed for part in images if part.assumed), None):
        properties["terraloom:assumed"] = assumed
    time = min(part.time for part in images if part.time)
    item = pystac.Item(name, footprint.json, list(footprint.boundingbox.bbox), time, properties)
    for part in images:
        item.add_asset(_asset_key(part, item), _asset(part))
    for mask in (part for part in parts if part.mask):
        item.add_asset(str(mask.mask), pystac.Asset(mask.href, roles=["data-mask"]))
    beside = {f"{path.with_suffix('')}{USER_MASK}" for part in images for path in [PurePosixPath(part.href)]}
    beside |= {f"{PurePosixPath(part.href).parent / name}{USER_MASK}" for part in images}
    for href in sorted(href for href in user_masks if str(PurePosixPath(href).with_suffix("")) in beside):
        item.add_asset("cloud", pystac.Asset(href, roles=["cloud"]))
    return item


def _finest_of_each_band(parts: list[Part]) -> list[Part]:
    """Return the parts without those whose bands another has at finer pixels (Sentinel-2 L2A holds bands two or three times)."""
    kept: list[Part] = []
    for part in sorted(parts, key=lambda p: (abs(p.facts.transform.a), p.href)):
        if not any(set(part.bands) <= set(other.bands) for other in kept):
            kept.append(part)
    return sorted(kept, key=lambda part: (part.href, part.indexes))


def _asset_key(part: Part, item: pystac.Item) -> str:
    key = "_".join(part.bands) if len(part.bands) == 1 else "pixels"
    return key if key not in item.assets else f"{key}_{len(item.assets)}"


def _asset(part: Part) -> pystac.Asset:
    scale, offset, nodata, form = part.numbers
    extra: dict[str, Any] = {
        "bands": [{"name": name} for name in part.bands],
        "data_type": part.facts.dtype,
        "nodata": nodata,
        "unit": form,
        "raster:scale": scale,
        "raster:offset": offset,
    }
    if part.variable is not None:
        extra |= {"terraloom:variable": part.variable, "terraloom:indexes": list(part.indexes)}
    return pystac.Asset(part.href, roles=["data"], extra_fields=extra)
