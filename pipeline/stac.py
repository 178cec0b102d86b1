"""STAC catalogs: written from scanned items, and read into scenes.

Decides what an item of any publisher must say to be used, and refuses the rest one by one with the reason. Assets are read
from where the catalog says, but not from outside the catalog's folder by a relative path, nor from this machine's disks
because a catalog from elsewhere says so.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pystac
from odc.geo.geom import Geometry
from shapely.errors import ShapelyError

from pipeline import storage
from pipeline.errors import InputError
from pipeline.masks import ANY_CLOUD, Mask
from pipeline.raster import dtype_of
from pipeline.scene import Asset, MaskAsset, Scene
from pipeline.sensors import Sensor, known_sensors, load_sensor, recognise, sensor_from_dict
from pipeline.units import BACKSCATTER, form_of

CATALOG_NAME = "scenes.json"
PICTURES = {"thumbnail", "overview", "visual", "metadata"}
REMOTE = ("s3://", "https://", "http://")


def write_catalog(items: Iterable[pystac.Item], url: str) -> None:
    """Write `items` as one STAC ItemCollection at `url`; assets below its folder are named from there, so both can move."""
    folder = storage.absolute(url).rpartition("/")[0] + "/"
    written = []
    for item in items:
        item = item.clone()
        for asset in item.assets.values():
            asset.href = asset.href.removeprefix(folder)
        written.append(item)
    storage.write_json(url, pystac.ItemCollection(written).to_dict())


def read_scenes(url: str) -> tuple[list[Scene], dict[str, str]]:
    """Read scenes from an ItemCollection, a static catalog, or a folder holding `scenes.json`; local, s3:// or https://.

    Returns the scenes and {item: reason} for items that do not say enough to be used.
    """
    if not url.startswith(("https://", "http://")):
        fs, path = storage.filesystem(url)
        url = storage.join(url, CATALOG_NAME) if fs.isdir(path) else url
    url = storage.absolute(url)
    content = _read(url)
    root = url.rpartition("/")[0]
    scenes: dict[str, Scene] = {}
    refused: dict[str, str] = {}
    for base, record in _items(content, url, refused, {url}):
        name = str(record.get("id"))
        try:
            if name in scenes:
                raise InputError("another item has the same id; expected each once")
            scenes[name] = _scene(record, base, root)
        except InputError as error:
            refused[name] = str(error)
    return list(scenes.values()), refused


def scenes_of(items: Iterable[pystac.Item]) -> list[Scene]:
    """Return the scenes of scanned items, whose assets are named by where they lie."""
    return [_scene(item.to_dict(), "", "") for item in items]


def _read(url: str) -> dict[str, Any]:
    try:
        content = storage.read_json(url)
    except FileNotFoundError:
        raise InputError(f"no STAC catalog at '{url}'; write one with 'terraloom scan FOLDER'") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"'{url}' is not JSON; expected a STAC ItemCollection or catalog") from None
    if not isinstance(content, dict):
        raise InputError(f"'{url}' is no STAC ItemCollection or catalog (holds a {type(content).__name__})")
    return content


def _items(content: dict[str, Any], url: str, refused: dict[str, str], seen: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (folder, item) for each item of a collection or of a tree of catalogs; what cannot be read goes to `refused`."""
    folder = url.rpartition("/")[0]
    if content.get("type") == "FeatureCollection":
        yield from ((folder, record) for record in content.get("features", []))
    elif content.get("type") == "Feature":
        yield folder, content
    elif content.get("type") in ("Catalog", "Collection"):
        for link in content.get("links", []):
            if link.get("rel") in ("item", "items", "child"):
                try:
                    child = _resolve(str(link.get("href")), folder, folder)
                    if child not in seen:
                        seen.add(child)
                        yield from _items(_read(child), child, refused, seen)
                except InputError as error:
                    refused[str(link.get("href"))] = str(error)
    else:
        raise InputError(f"'{url}' is no STAC ItemCollection or catalog (type is {content.get('type')!r})")


def _scene(record: dict[str, Any], folder: str, root: str) -> Scene:
    properties = record.get("properties") or {}
    sensor = _sensor(record, properties)
    time, footprint = _time(properties), _geometry(record)
    assets, masks = [], []
    for key, asset in (record.get("assets") or {}).items():
        roles = asset.get("roles") or []
        if mask := (ANY_CLOUD if "cloud" in roles and not sensor.mask(key) else sensor.mask(key)):
            masks.append(_mask(asset, mask, folder, root))
        elif bands := _bands(key, asset, sensor):
            assets.append(_asset(asset, bands, sensor, properties, _resolve(str(asset.get("href")), folder, root)))
    if not assets:
        raise InputError(f"no asset has a band of sensor '{sensor.name}' ({', '.join(sensor.band_names)})")
    return Scene(str(record["id"]), sensor, time, tuple(assets), tuple(masks), footprint)


def _sensor(record: dict[str, Any], properties: dict[str, Any]) -> Sensor:
    stated = properties.get("terraloom:sensor")
    if isinstance(stated, dict):
        return sensor_from_dict(stated, f"of item '{record.get('id')}'")
    if stated:
        return load_sensor(str(stated))
    shipped = [load_sensor(name) for name in known_sensors()]
    collected = [sensor for sensor in shipped if record.get("collection") in sensor.collections]
    sensor = collected[0] if len(collected) == 1 else recognise([str(record.get("id"))])
    if sensor is None:
        raise InputError("names no sensor; add the property 'terraloom:sensor'")
    return sensor


def _time(properties: dict[str, Any]) -> datetime:
    stated = properties.get("datetime") or properties.get("start_datetime")
    if stated is None:
        raise InputError("has no datetime; expected the property 'datetime', or 'start_datetime' of a period")
    try:
        time = datetime.fromisoformat(str(stated))
    except ValueError:
        raise InputError(f"its datetime '{stated}' is not ISO 8601; expected for example 2018-05-01T10:30:00Z") from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _geometry(record: dict[str, Any]) -> Geometry:
    try:
        footprint = Geometry(record["geometry"], "EPSG:4326")
    except (KeyError, ValueError, TypeError, AttributeError, ShapelyError):
        footprint = None
    if footprint is None or footprint.is_empty or not footprint.is_valid or footprint.area == 0:
        raise InputError("has no geometry that is a polygon; expected the outline of the scene in lon/lat")
    return footprint


def _bands(key: str, asset: dict[str, Any], sensor: Sensor) -> tuple[str, ...]:
    """Return the sensor's bands that an asset holds: as its `bands` or `eo:bands` say, or else its key."""
    if sensor.is_auxiliary(key) or PICTURES & set(asset.get("roles") or []):
        return ()
    stated = asset.get("bands") or asset.get("eo:bands") or []
    names = [[band.get("name"), band.get("eo:common_name"), band.get("common_name")] for band in stated]
    found = [next((name for name in options if name and sensor.has_band(name)), None) for options in names]
    if found and all(found):
        return tuple(sensor.band(str(name)).name for name in found)
    return (sensor.band(key).name,) if sensor.has_band(key) and len(stated) <= 1 else ()


def _mask(asset: dict[str, Any], mask: Mask, folder: str, root: str) -> MaskAsset:
    return MaskAsset(href=_resolve(str(asset.get("href")), folder, root), mask=mask)


def _asset(asset: dict[str, Any], bands: tuple[str, ...], sensor: Sensor, properties: dict[str, Any], href: str) -> Asset:
    """Return what an item says of an asset's numbers; what it leaves open, the sensor's definition tells."""
    described = [*(asset.get("raster:bands") or []), *(asset.get("bands") or [])]
    stated = {**(described[0] if described else {}), **asset}
    dtype = stated.get("data_type")
    if dtype is None:  # radar comes as floats or as whole numbers, other sensors as one of them
        dtype = dtype_of(href) if sensor.quantity in BACKSCATTER else "uint16"
    default = sensor.delivery(str(dtype))
    scale, offset = stated.get("raster:scale", stated.get("scale")), stated.get("raster:offset", stated.get("offset"))
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version")
    if properties.get("earthsearch:boa_offset_applied"):
        offset = 0.0  # said beside an offset that was applied already, and is not to be applied again
    elif offset is None and default.baseline_offsets:
        if baseline is None:
            raise InputError("states neither an offset nor a processing baseline; add 's2:processing_baseline' or 'raster:offset'")
        offset = default.offset_at(str(baseline))
    elif scale is None and offset is None and default.needs_metadata:
        raise InputError(
            f"states no scale of its assets, without which {sensor.name} has no unit; add 'raster:scale' and 'raster:offset'"
        )
    try:
        return Asset(
            href=href,
            bands=bands,
            indexes=tuple(stated.get("terraloom:indexes") or range(1, len(bands) + 1)),
            scale=default.scale if scale is None else float(scale),
            offset=default.offset if offset is None else float(offset),
            nodata=_nodata(stated["nodata"]) if "nodata" in stated else default.nodata,
            form=form_of(stated["unit"], sensor.quantity) if stated.get("unit") else default.form or sensor.unit,
            variable=stated.get("terraloom:variable"),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"what it says of '{href}' cannot be used ({str(error).splitlines()[0]})") from None


def _nodata(stated: Any) -> float | None:
    return None if stated is None else float(stated)  # also "nan"


def _resolve(href: str, folder: str, root: str) -> str:
    """Return where `href` lies, written in a file in `folder` of a catalog in `root`."""
    if href.startswith(REMOTE):
        return href
    href = href.removeprefix("file://")
    if "://" in href or href.startswith(("/vsi", "\\")):
        raise InputError(f"cannot read '{href}'; expected a relative path, s3:// or https://")
    if href.startswith("/"):
        if root.startswith(REMOTE):
            raise InputError(f"'{href}' lies on this machine, but the catalog '{root}' does not; expected a path below it")
        return href
    scheme, _, path = folder.rpartition("://") if "://" in folder else ("", "", folder)
    resolved = posixpath.normpath(posixpath.join(path, href))
    resolved = f"{scheme}://{resolved}" if scheme else resolved
    if not resolved.startswith(root.rstrip("/") + "/"):
        raise InputError(f"'{href}' leads out of the catalog's folder '{root}'; expected a path below it")
    return resolved
