"""Files -> STAC items: which sensor, time and bands a file is of, and what it says of its numbers.

Decides what plain files must say to become a scene, and refuses the rest with the reason. What a file states of its
scale, offset, nodata and unit goes before its product's metadata, and that before the sensor's definition.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

import numpy as np
import pystac
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline import cube, storage
from pipeline.errors import InputError
from pipeline.part import USER_MASK, Facts, Part, item_of
from pipeline.product import MTL_NAME, SAFE_NAME, Calibration, read_metadata
from pipeline.raster import open_raster
from pipeline.sensors import Sensor, load_sensor, recognise
from pipeline.units import contradiction, form_of

SUFFIXES = (".tif", ".tiff", ".jp2", *cube.SUFFIXES)
SAMPLE_PX = 256


@dataclass(frozen=True)
class Given:
    """What the user says of all files: where it is given, it goes before what files say."""

    sensor: Sensor | None = None
    time: datetime | None = None
    """Only for files that state none."""
    unit: str | None = None


def scan(folder: str, given: Given = Given(), only: str | None = None) -> tuple[list[pystac.Item], dict[str, str]]:
    """Describe the images under `folder` (local or s3://) as STAC items; return them and {file: reason} for those refused.

    The sensor is the one given, or the file's SENSOR tag tells it, or its name or that of a folder around it; bands come
    from band descriptions or the name's ending, the time from the DATETIME tag, the product's metadata or a name. Files of
    one scene differ only in that ending, or lie in one product folder (SAFE). A file <name>_cloud is the cloud mask of
    <name>: whatever is not 0 in it is cloud. `only` leaves out all but that file and the masks.
    """
    listing = _Listing(folder)
    parts: dict[tuple[str, str], list[Part]] = defaultdict(list)
    refused: dict[str, str] = {}
    masks = {href for href in listing.images if PurePosixPath(href).stem.lower().endswith(USER_MASK)}
    for href in listing.images:
        if href in masks or (only is not None and href != only):
            continue
        try:
            for part in _parts(href, listing, given):
                parts[part.scene].append(part)
        except InputError as error:
            refused[href] = str(error)
    if not parts and not refused:
        raise InputError(f"no {', '.join(SUFFIXES)} file under '{folder}'; give the folder that holds the scenes")
    items = []
    for (_, name), found in sorted(parts.items()):
        try:
            items.append(item_of(name, found, masks))
        except InputError as error:
            refused |= dict.fromkeys((part.href for part in found), str(error))
    return items, refused


class _Listing:
    """The images under a folder and the products' metadata among the other files."""

    def __init__(self, folder: str):
        self.root = storage.absolute(folder).rstrip("/")
        names = [name for name in storage.files(self.root) if not any(part.startswith(".") for part in name.split("/"))]
        if not names:
            raise InputError(f"folder '{folder}' is empty or does not exist; give a folder with {', '.join(SUFFIXES)} files")
        stores = {match.group(0) for name in names if (match := re.match(r".*?\.zarr(?=/)", name, re.IGNORECASE))}
        plain = [name for name in names if not re.search(r"\.zarr/", name, re.IGNORECASE)]
        images = [name for name in plain if name.lower().endswith(SUFFIXES)]
        self.images = [storage.join(self.root, name) for name in sorted([*images, *stores])]
        self._safe = {str(PurePosixPath(name).parent): name for name in plain if SAFE_NAME.search(name)}
        self._mtl = {match["scene"]: name for name in plain if (match := MTL_NAME.match(name))}

    def folders(self, href: str) -> list[PurePosixPath]:
        """Return the folders around `href` within the root, the nearest first."""
        return list(PurePosixPath(href.removeprefix(self.root + "/")).parents)

    def product(self, href: str) -> PurePosixPath | None:
        """Return the folder of the SAFE product that `href` is part of."""
        return next((folder for folder in self.folders(href) if str(folder) in self._safe), None)

    def calibration(self, href: str, scene_id: str, sensor: Sensor) -> Calibration | None:
        kind = sensor.delivered.metadata if sensor.delivered else None
        name = None
        if kind == "safe" and (product := self.product(href)) is not None:
            name = self._safe[str(product)]
        elif kind == "mtl":
            name = self._mtl.get(str(self.folders(href)[0] / scene_id).removeprefix("./"))
        if name is None:
            return None
        return read_metadata(PurePosixPath(name).name, storage.read_bytes(storage.join(self.root, name)), sensor)


def _parts(href: str, listing: _Listing, given: Given) -> list[Part]:
    names = [PurePosixPath(href).name, *(folder.name for folder in listing.folders(href) if folder.name)]
    if cube.is_cube(href):
        return _cube_parts(href, names, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without georeference is refused below, with the reason
        with open_raster(href) as source:
            part = _file_part(href, source, names, listing, given)
            if part and part.bands:
                _check_numbers(_sample(source, part.indexes), part)
    return [part] if part else []


def _file_part(href: str, source: rasterio.DatasetReader, names: list[str], listing: _Listing, given: Given) -> Part | None:
    """Return what a raster file is, or None if it belongs to its product but is no band."""
    tags, stem = source.tags(), PurePosixPath(href).stem
    sensor = given.sensor or (load_sensor(tags["SENSOR"]) if "SENSOR" in tags else recognise(names))
    if sensor is None:
        raise InputError("sensor unknown: neither a SENSOR tag nor a name tells; pass --sensor")
    prefix, ending = sensor.split_name(stem) or (stem, "")
    mask = sensor.mask(ending) if ending else None
    if ending and not mask and sensor.is_auxiliary(ending):
        return None
    facts, bands = _facts(source), () if mask else _bands(source, sensor, ending)
    is_whole = not mask and (not ending or source.count > 1 or len(sensor.bands) == 1)
    product = listing.product(href)
    folder, name = str(listing.folders(href)[0]), stem if is_whole else prefix or names[1]
    if product is not None:
        folder, name = str(product), (product.name or PurePosixPath(listing.root).name).removesuffix(".SAFE")
    calibration = listing.calibration(href, name, sensor)
    time = _tagged_time(tags) or (calibration.time if calibration else None) or _named_time(names) or given.time
    part = Part((folder, name), href, sensor, time and _utc(time), facts, bands, tuple(range(1, len(bands) + 1)))
    if mask:
        return replace(part, mask=mask.endings[0])
    if time is None:
        raise InputError("no acquisition time in its tags, metadata or names; pass --datetime")
    return _with_numbers(part, given, calibration, names)


def _facts(source: rasterio.DatasetReader) -> Facts:
    if source.crs is None:
        if source.gcps[0]:
            raise InputError("has no CRS but ground control points; terrain-correct it first")
        raise InputError("has no CRS; data without one goes through 'terraloom ingest'")
    if len(set(source.dtypes)) > 1:
        raise InputError(f"its bands have different dtypes ({', '.join(source.dtypes)}); expected one")
    if len(set(zip(source.scales, source.offsets))) > 1:
        raise InputError("its bands have different scales or offsets; give one file per band")
    is_scaled = source.scales[0] != 1 or source.offsets[0] != 0
    return Facts(
        source.dtypes[0],
        source.crs.to_string(),
        source.transform,
        source.shape,
        source.scales[0] if is_scaled else None,
        source.offsets[0] if is_scaled else None,
        source.nodata,
        source.units[0] or None,
    )


def _bands(source: rasterio.DatasetReader, sensor: Sensor, ending: str) -> tuple[str, ...]:
    named = [name for name in source.descriptions if name]
    if len(named) == source.count and all(sensor.has_band(name) for name in named):
        return tuple(sensor.band(name).name for name in named)
    if source.count == 1 and ending:
        return (sensor.band(ending).name,)
    if source.count == len(sensor.bands):
        return sensor.band_names
    raise InputError(f"has {source.count} bands without known names; sensor '{sensor.name}' has {', '.join(sensor.band_names)}")


def _cube_parts(href: str, names: list[str], given: Given) -> list[Part]:
    """Return one part for each variable and date of a cube."""
    sensor = given.sensor or recognise(names)
    if sensor is None:
        raise InputError("sensor unknown: its name does not tell; pass --sensor")
    parts = []
    for variable in cube.describe_cube(href, sensor.has_band):
        facts = Facts(
            variable.dtype, variable.crs.to_string(), variable.transform, variable.shape,
            variable.scale, variable.offset, variable.nodata, variable.unit,
        )  # fmt: skip
        made = []
        for time in dict.fromkeys(layer.time for layer in variable.layers):
            layers = [layer for layer in variable.layers if layer.time == time]
            when = time or _named_time(names[:1]) or given.time
            if when is None:
                raise InputError("has no axis of time and no time in its name; pass --datetime")
            name = PurePosixPath(href).stem + (f"_{when:%Y%m%dT%H%M%S}" if time else "")
            bands, indexes = tuple(sensor.band(layer.band).name for layer in layers), tuple(layer.index for layer in layers)
            part = Part((href, name), href, sensor, _utc(when), facts, bands, indexes, variable.name)
            made.append(_with_numbers(part, given, None, names))
        # One date speaks for all: opening the file costs more than everything else.
        _check_numbers(cube.sample(href, variable.name, made[0].indexes[0], SAMPLE_PX), made[0])
        parts += made
    return parts


def _with_numbers(part: Part, given: Given, calibration: Calibration | None, names: list[str]) -> Part:
    """Return `part` with what its stored numbers mean."""
    facts, sensor = part.facts, part.sensor
    default = sensor.delivery(facts.dtype)
    scale, offset, assumed = default.scale, default.offset, None
    if facts.scale is not None or facts.offset is not None:
        scale, offset = facts.scale or 1.0, facts.offset or 0.0
    elif facts.dtype.startswith("float"):
        pass  # physical values, or those of the declared form
    elif calibration is not None:
        scale, offset = calibration.of(part.bands)
    elif default.needs_metadata:
        raise InputError(f"has no {part.scene[1]}_MTL file beside it, so its numbers have no unit; add it, or pass --sensor")
    elif default.baseline_offsets:
        baseline = next((f"{m[1]}.{m[2]}" for name in names if (m := re.search(r"_N(\d\d)(\d\d)_", name))), None)
        offset = default.offset_at(baseline) if baseline else default.offset
        assumed = None if baseline else "no processing baseline stated: taken to have no offset"
    nodata = default.nodata if facts.nodata is None else facts.nodata
    stated = given.unit or facts.unit
    form = form_of(stated, sensor.quantity) if stated else default.form
    return replace(part, numbers=(scale, offset, nodata, form or sensor.unit), assumed=assumed)


def _sample(source: rasterio.DatasetReader, indexes: Sequence[int]) -> np.ndarray:
    """Return some stored numbers from the middle and the end of a file, which also shows whether it is whole."""
    rows, columns = (min(n, SAMPLE_PX) for n in source.shape)
    starts = ((source.height - rows) // 2, (source.width - columns) // 2), (source.height - rows, source.width - columns)
    try:
        return np.stack([source.read(indexes, window=Window(x, y, columns, rows)) for y, x in starts])
    except RasterioError as error:
        raise InputError(f"cannot read '{source.name}': {str(error).splitlines()[0]}") from None


def _check_numbers(stored: np.ndarray, part: Part) -> None:
    scale, offset, nodata, form = part.numbers
    found = stored[np.isfinite(stored) & (stored != nodata)]
    if reason := contradiction(part.sensor.to_physical(found, scale, offset, part.sensor.unit), form, part.sensor.valid_range):
        raise InputError(reason)


def _tagged_time(tags: dict[str, str]) -> datetime | None:
    for stated in (tags.get("DATETIME"), tags.get("TIFFTAG_DATETIME")):
        if stated:
            try:
                return datetime.fromisoformat(re.sub(r"^(\d{4}):(\d\d):(\d\d) ", r"\1-\2-\3T", stated))
            except ValueError:
                raise InputError(f"its time tag '{stated}' is not ISO 8601; expected for example 2018-05-01T10:30:00") from None
    return None


def _named_time(names: Sequence[str]) -> datetime | None:
    """Return the first time in a name: 20180501, 20180501T103000, or with the day of the year, 2018121T103000."""
    for name in names:
        for pattern, form in ((r"(?<!\d)(?:19|20)\d{6}T\d{6}", "%Y%m%dT%H%M%S"), (r"(?<!\d)(?:19|20)\d{5}T\d{6}", "%Y%jT%H%M%S"),
                              (r"(?<!\d)(?:19|20)\d{6}(?!\d)", "%Y%m%d")):  # fmt: skip
            for found in re.findall(pattern, name):
                try:
                    return datetime.strptime(found, form)
                except ValueError:
                    continue
    return None


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
