"""Scenes: raw acquisitions described as STAC items, and read as physical values on any pixel grid.

Decides what an item must say to be used (sensor, time, CRS, which file holds which band, scale, offset, nodata) and
refuses the rest with the reason. Reading applies each file's own scale and offset.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
from numpy.typing import DTypeLike
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry

from pipeline import storage
from pipeline.alignment import UNMOVED, Alignment
from pipeline.errors import InputError
from pipeline.raster import open_raster, read_on_grid
from pipeline.sensors import Sensor, load_sensor, recognise, sensor_from_dict

SUFFIXES = (".tif", ".tiff", ".jp2")
CLOUD_SUFFIX = "_cloud"
CATALOG_NAME = "scenes.json"


@dataclass(frozen=True)
class Asset:
    """One file of a scene: `bands` names the sensor's bands in file order. physical = stored * scale + offset."""

    href: str
    bands: tuple[str, ...]
    scale: float
    offset: float
    nodata: float | None


@dataclass(frozen=True)
class Scene:
    """One acquisition of one sensor. `footprint` is the outline of the finest file in lon/lat."""

    id: str
    sensor: Sensor
    time: datetime
    assets: tuple[Asset, ...]
    cloud_href: str | None
    footprint: Geometry

    def to_dict(self) -> dict[str, Any]:
        """Return what `scene_from_dict` makes the same scene of."""
        return {
            "id": self.id,
            "sensor": self.sensor.model_dump(mode="json", exclude_defaults=True),
            "time": self.time.isoformat(),
            "assets": [asdict(asset) for asset in self.assets],
            "cloud_href": self.cloud_href,
            "footprint": self.footprint.json,
        }

    @property
    def bands(self) -> tuple[str, ...]:
        present = {band for asset in self.assets for band in asset.bands}
        return tuple(name for name in self.sensor.band_names if name in present)

    def read(self, geobox: GeoBox, bands: tuple[str, ...], alignment: Alignment = UNMOVED) -> tuple[np.ndarray, np.ndarray]:
        """Return physical values (bands, y, x) float32 and (y, x) bool validity (all bands have data) on `geobox`.

        `alignment` corrects the stated coordinates; see `raster.read_on_grid`. Clouds stay valid here.
        """
        return self._read(geobox, bands, alignment, np.float32, self.sensor.to_physical)

    def read_stored(self, geobox: GeoBox, sensor: Sensor, alignment: Alignment = UNMOVED) -> tuple[np.ndarray, np.ndarray]:
        """Return what `read` does of all bands of `sensor`, as it stores them."""
        return self._read(geobox, sensor.band_names, alignment, sensor.dtype, sensor.restored)

    def _read(
        self,
        geobox: GeoBox,
        bands: tuple[str, ...],
        alignment: Alignment,
        dtype: DTypeLike,
        convert: Callable[[np.ndarray, float, float], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        converted = np.zeros((len(bands), *geobox.shape), dtype)
        is_valid = np.ones(geobox.shape, bool)
        missing = set(bands)
        for asset in self.assets:
            wanted = [name for name in asset.bands if name in missing]
            if not wanted:
                continue
            indexes = tuple(asset.bands.index(name) + 1 for name in wanted)
            numbers, has_data = read_on_grid(asset.href, indexes, geobox, asset.nodata, alignment)
            for name, band in zip(wanted, numbers):
                converted[bands.index(name)] = convert(band, asset.scale, asset.offset)
            is_valid &= has_data
            missing -= set(wanted)
        if missing:
            raise InputError(f"scene '{self.id}' has no band {sorted(missing)} (has {', '.join(self.bands)})")
        return converted, is_valid

    def read_cloud(self, geobox: GeoBox, alignment: Alignment = UNMOVED) -> np.ndarray:
        """Return (y, x) bool, True under cloud or cloud shadow; all False where the scene has no mask."""
        if self.cloud_href is None:
            return np.zeros(geobox.shape, bool)
        classes, has_data = read_on_grid(self.cloud_href, (1,), geobox, None, alignment, categorical=True)
        return (classes[0] > 0) & has_data


def scene_from_dict(record: dict[str, Any]) -> Scene:
    assets = tuple(Asset(**{**asset, "bands": tuple(asset["bands"])}) for asset in record["assets"])
    sensor = sensor_from_dict(record["sensor"], f"of scene '{record['id']}'")
    time, footprint = datetime.fromisoformat(record["time"]), Geometry(record["footprint"], "EPSG:4326")
    return Scene(record["id"], sensor, time, assets, record["cloud_href"], footprint)


def scan(folder: str, sensor_name: str | None = None, time: datetime | None = None) -> tuple[list[pystac.Item], dict[str, str]]:
    """Describe the raster files under local `folder` as STAC items; return them and {file: reason} for those refused.

    The sensor comes from `sensor_name` (a known name or a YAML file), else from the file's SENSOR tag, else from its
    name; bands from the file's band descriptions or a `_<band>` ending; the time from the DATETIME tag, else from the
    name, else `time`. Files of one scene are those whose names differ only in that ending.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"folder '{folder}' does not exist; give a folder with {', '.join(SUFFIXES)} files")
    given = load_sensor(sensor_name) if sensor_name else None
    grouped: dict[str, list[tuple[Path, Sensor, dict[str, Any]]]] = {}
    refused: dict[str, str] = {}
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
        if path.stem.endswith(CLOUD_SUFFIX):
            continue
        try:
            sensor, scene_id, facts = _describe_file(path, given, time)
        except InputError as error:
            refused[str(path)] = str(error)
            continue
        grouped.setdefault(str(path.parent / scene_id), []).append((path, sensor, facts))
    if not grouped and not refused:
        raise InputError(f"no {', '.join(SUFFIXES)} file under '{folder}'; give the folder that holds the scenes")
    return [_item(Path(key).name, files) for key, files in grouped.items()], refused


def _describe_file(path: Path, given: Sensor | None, time: datetime | None) -> tuple[Sensor, str, dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without georeference is refused below, with the reason
        with open_raster(str(path)) as source:
            tags, crs = source.tags(), source.crs
            sensor = given or (load_sensor(tags["SENSOR"]) if "SENSOR" in tags else recognise(path.name))
            if sensor is None:
                raise InputError("sensor unknown: neither a SENSOR tag nor the file name tells; pass --sensor")
            if crs is None:
                raise InputError("has no CRS; data without one goes through 'terraloom ingest'")
            bands, scene_id = _bands_of(path.stem, sensor, source.count, source.descriptions)
            when = _time_of(path.name, tags) or time
            if when is None:
                raise InputError("no acquisition time in its tags or name; pass --datetime")
            has_scaling = source.scales[0] != 1 or source.offsets[0] != 0
            # Files rarely say their scaling. Floats are taken as physical values, integers as the sensor's stored form.
            floating = source.dtypes[0].startswith("float")
            default = (1.0, 0.0) if floating else (sensor.scale, sensor.offset)
            scale, offset = (source.scales[0], source.offsets[0]) if has_scaling else default
            bounds = source.bounds
            facts = {
                "bands": bands,
                "scale": scale,
                "offset": offset,
                "nodata": source.nodata if source.nodata is not None else (None if floating or sensor.dtype == "uint8" else 0),
                "time": when,
                "crs": crs.to_string(),
                "transform": list(source.transform)[:6],
                "shape": list(source.shape),
                "footprint": _lonlat(bounds, crs),
            }
    return sensor, scene_id, facts


def _bands_of(stem: str, sensor: Sensor, count: int, descriptions: tuple[str | None, ...]) -> tuple[tuple[str, ...], str]:
    named = [d for d in descriptions if d]
    if len(named) == count and all(_has_band(sensor, name) for name in named):
        return tuple(sensor.band(name).name for name in named), stem
    if count == len(sensor.bands):
        return sensor.band_names, stem
    prefix, _, ending = stem.rpartition("_")
    if count == 1 and prefix and _has_band(sensor, ending):
        return (sensor.band(ending).name,), prefix
    raise InputError(f"has {count} bands without known names; sensor '{sensor.name}' has {', '.join(sensor.band_names)}")


def _has_band(sensor: Sensor, name: str) -> bool:
    return any(name.lower() in (b.name.lower(), *(a.lower() for a in b.aliases)) for b in sensor.bands)


def _time_of(name: str, tags: dict[str, str]) -> datetime | None:
    for stated in (tags.get("DATETIME"), tags.get("TIFFTAG_DATETIME")):
        if stated:
            try:
                return _utc(datetime.fromisoformat(re.sub(r"^(\d{4}):(\d\d):(\d\d) ", r"\1-\2-\3T", stated)))
            except ValueError:
                raise InputError(f"its time tag '{stated}' is not ISO 8601; expected for example 2018-05-01T10:30:00") from None
    match = re.search(r"(19|20)\d{6}(T\d{6})?", name)
    try:
        return _utc(datetime.fromisoformat(match.group(0))) if match else None
    except ValueError:
        return None


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _lonlat(bounds: Any, crs: Any) -> dict[str, Any]:
    outline = Geometry(
        {
            "type": "Polygon",
            "coordinates": [
                [
                    (bounds.left, bounds.bottom),
                    (bounds.right, bounds.bottom),
                    (bounds.right, bounds.top),
                    (bounds.left, bounds.top),
                    (bounds.left, bounds.bottom),
                ]
            ],
        },
        crs.to_string(),
    )
    return outline.to_crs("EPSG:4326", resolution=max(bounds.right - bounds.left, bounds.top - bounds.bottom) / 8).json


def _item(scene_id: str, files: list[tuple[Path, Sensor, dict[str, Any]]]) -> pystac.Item:
    finest = max(files, key=lambda file: file[2]["shape"][0])[2]
    sensor = files[0][1]
    footprint = Geometry(finest["footprint"], "EPSG:4326")
    item = pystac.Item(
        id=scene_id,
        geometry=finest["footprint"],
        bbox=list(footprint.boundingbox.bbox),
        datetime=finest["time"],
        properties={
            "terraloom:sensor": sensor.model_dump(mode="json", exclude_defaults=True),
            "proj:code": finest["crs"],
            "proj:transform": finest["transform"],
            "proj:shape": finest["shape"],
        },
    )
    for path, _, facts in files:
        extra = {
            "bands": [{"name": name} for name in facts["bands"]],
            "raster:scale": facts["scale"],
            "raster:offset": facts["offset"],
            "nodata": facts["nodata"],
        }
        key = path.stem.removeprefix(scene_id).strip("_") or "pixels"
        item.add_asset(key, pystac.Asset(str(path.resolve()), roles=["data"], extra_fields=extra))
        cloud = path.with_name(f"{path.stem}{CLOUD_SUFFIX}{path.suffix}")
        if cloud.is_file():
            item.add_asset("cloud", pystac.Asset(str(cloud.resolve()), roles=["cloud"]))
    return item


def write_catalog(items: Iterable[pystac.Item], url: str) -> None:
    """Write `items` as one STAC ItemCollection at `url`."""
    collection = pystac.ItemCollection(items)
    storage.write_json(url, collection.to_dict())


def read_scenes(url: str) -> tuple[list[Scene], dict[str, str]]:
    """Read scenes from an ItemCollection, a static catalog, or a folder holding `scenes.json`.

    Returns the scenes and {item: reason} for items that do not say enough to be used.
    """
    fs, path = storage.filesystem(url)
    if fs.isdir(path):
        url = storage.join(url, CATALOG_NAME)
    if not storage.exists(url):
        raise InputError(f"no STAC catalog at '{url}'; write one with 'terraloom scan FOLDER'")
    try:
        content = storage.read_json(url)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"'{url}' is not JSON; expected a STAC ItemCollection or catalog") from None
    if content.get("type") == "FeatureCollection":
        items: Iterable[pystac.Item] = pystac.ItemCollection.from_dict(content).items
    elif content.get("type") in ("Catalog", "Collection"):
        items = pystac.Catalog.from_file(url).get_items(recursive=True)
    else:
        raise InputError(f"'{url}' is no STAC ItemCollection or catalog (type is {content.get('type')!r})")
    scenes, refused = [], {}
    for item in items:
        try:
            scenes.append(_scene(item, url))
        except InputError as error:
            refused[item.id] = str(error)
    return scenes, refused


def _scene(item: pystac.Item, catalog_url: str) -> Scene:
    stated = item.properties.get("terraloom:sensor")
    sensor = sensor_from_dict(stated, f"of item '{item.id}'") if isinstance(stated, dict) else None
    sensor = sensor or (load_sensor(stated) if stated else recognise(item.id))
    if sensor is None:
        raise InputError("names no sensor; add the property 'terraloom:sensor'")
    if item.datetime is None or item.geometry is None:
        raise InputError("has no datetime or no geometry")
    assets, cloud = [], None
    for asset in item.assets.values():
        href = _resolve(asset, item, catalog_url)
        if "cloud" in (asset.roles or []):
            cloud = href
        elif bands := [b.get("name") for b in asset.extra_fields.get("bands", asset.extra_fields.get("eo:bands", []))]:
            if not all(name and _has_band(sensor, name) for name in bands):
                continue
            raster = {**asset.extra_fields, **(asset.extra_fields.get("raster:bands") or [{}])[0]}
            assets.append(
                Asset(
                    href,
                    tuple(sensor.band(name).name for name in bands),
                    float(raster.get("raster:scale", raster.get("scale", sensor.scale))),
                    float(raster.get("raster:offset", raster.get("offset", sensor.offset))),
                    raster.get("nodata"),
                )
            )
    if not assets:
        raise InputError(f"no asset has a band of sensor '{sensor.name}' ({', '.join(sensor.band_names)})")
    footprint = Geometry(item.geometry, "EPSG:4326")
    return Scene(item.id, sensor, _utc(item.datetime), tuple(assets), cloud, footprint)


def _resolve(asset: pystac.Asset, item: pystac.Item, catalog_url: str) -> str:
    if "://" in asset.href or asset.href.startswith("/"):
        return asset.href
    base = item.get_self_href() or catalog_url
    return storage.join(base.rpartition("/")[0] or ".", asset.href)
