"""The commands that make and mend archives: arguments in, one job run, its summary out; a job is imported when it is asked for."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes, Positional

from jobs.arguments import parse
from pipeline.errors import InputError


@dataclass(frozen=True)
class Simulate:
    """Render a synthetic planet: raw scenes of four sensors, several dates, with everything that is true beside them."""

    out: Positional[str]
    """Folder for the planet."""


@dataclass(frozen=True)
class Scan:
    """Describe the GeoTIFF, JPEG 2000, NetCDF and Zarr files under a folder as STAC; files that do not say enough are listed."""

    folder: Positional[str]
    sensor: str | None = None
    """Sensor of all files: a known name or the path of a sensor YAML; default: from tags and names."""
    datetime: str | None = None
    """ISO 8601 acquisition time for files that state none."""
    unit: str | None = None
    """Of all files, where they or their sensor would say another: for backscatter dB, power or amplitude."""
    out: str | None = None
    """Where to write the catalog; default: FOLDER/scenes.json."""


@dataclass(frozen=True)
class GridOptions:
    """The tiling grid; an archive keeps the one it was begun with."""

    site_size_m: float = 640.0
    """Side of a site, metres."""
    shard_sites: int = 4
    """Sites along one side of a shard."""
    block_shards: int = 1
    """Shards along one side of a block; a block is in one split."""
    gap_sites: int = 0
    """So many sites deep, val and test sites that border on another split are in none."""


@dataclass(frozen=True)
class Coregister:
    """Register scenes to each other and cut them into an archive. Doing it again does only what is missing."""

    scenes: Positional[str]
    """STAC ItemCollection or catalog, or a folder with scenes.json; local or s3://."""
    archive: Positional[str]
    grid: OmitArgPrefixes[GridOptions] = field(default_factory=GridOptions)
    reference: str | None = None
    """Sensor that the others are registered to; default: the reflectance sensor with most scenes."""
    max_shift_m: float = 60.0
    """Largest shift searched for, metres."""
    min_valid_fraction: float = 0.3
    """Tiles with a smaller share of clear, covered pixels are not kept."""
    register: bool = True
    """False only reprojects."""
    labels: str | None = None
    """Folder of label rasters <name>_<date>.tif with the tags CLASSES (JSON list) and DATETIME."""


@dataclass(frozen=True)
class Ingest:
    """Put ready-made chips, with or without a CRS, into an archive."""

    layout: Positional[str]
    """A public data set's form, such as bigearthnet; an unknown name lists all. `pipeline/datasets` describes each."""
    folder: Positional[str]
    """Local folder with the data set's files, as published."""
    archive: Positional[str]
    grid: OmitArgPrefixes[GridOptions] = field(default_factory=GridOptions)


@dataclass(frozen=True)
class Verify:
    """Prove every checksum, count and value range of an archive."""

    archive: Positional[str]


@dataclass(frozen=True)
class Inspect:
    """Say what is in an archive: sensors, dates, splits, labels, sizes, registration, missing pairs."""

    archive: Positional[str]


@dataclass(frozen=True)
class Repair:
    """Make an archive's catalog anew from its whole shards, hide damaged ones and list them, clear up after killed jobs."""

    archive: Positional[str]


def _simulate(arguments: list[str]) -> dict[str, Any]:
    from jobs.simulate import simulate_planet
    from pipeline.simulation.config import SimulateConfig

    @dataclass(frozen=True)
    class Options(Simulate):
        config: OmitArgPrefixes[SimulateConfig] = field(default_factory=SimulateConfig)

    options = parse(Options, arguments, "simulate", Simulate.__doc__)
    return simulate_planet(options.out, options.config)


def _scan(arguments: list[str]) -> dict[str, Any]:
    from jobs.simulate import scan_folder

    options = parse(Scan, arguments, "scan")
    return scan_folder(options.folder, options.sensor, options.datetime, options.out, options.unit)


def _coregister(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.coregister import coregister
    from pipeline.coregister import CoregisterConfig
    from pipeline.grid import Grid

    options = parse(Coregister, arguments, "coregister")
    config = CoregisterConfig(options.reference, options.max_shift_m, options.min_valid_fraction, options.register)
    grid = Grid(**asdict(options.grid))
    connect()
    return coregister(options.scenes, options.archive, grid, config, options.labels)


def _ingest(arguments: list[str]) -> dict[str, Any]:
    from jobs.ingest import ingest
    from pipeline.grid import Grid

    options = parse(Ingest, arguments, "ingest")
    return ingest(options.layout, options.folder, options.archive, Grid(**asdict(options.grid)))


def _verify(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.archives import verify
    from pipeline.archive import open_archive

    options = parse(Verify, arguments, "verify")
    open_archive(options.archive).catalog()
    connect()
    return verify(options.archive)


def _inspect(arguments: list[str]) -> dict[str, Any]:
    from jobs.inspect import inspect

    return inspect(parse(Inspect, arguments, "inspect").archive)


def _repair(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.repair import repair
    from pipeline.archive import open_archive

    options = parse(Repair, arguments, "repair")
    open_archive(options.archive)
    connect()
    return repair(options.archive)


def _sensors(arguments: list[str]) -> dict[str, Any]:
    from jobs.sensors import check_sensor, list_sensors, show_sensor

    @dataclass(frozen=True)
    class Options:
        action: Positional[Literal["list", "show", "check"]] = "list"
        name: Positional[str | None] = None
        """show: a known sensor or a sensor YAML; check: a sensor YAML."""

    options = parse(Options, arguments, "sensors", "List the known sensors, show one, or check a sensor YAML.")
    if options.action == "list":
        return list_sensors()
    if options.name is None:
        raise InputError(f"sensors {options.action} needs a name; expected 'terraloom sensors {options.action} NAME'")
    return show_sensor(options.name) if options.action == "show" else check_sensor(options.name)


COMMANDS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "simulate": _simulate,
    "scan": _scan,
    "coregister": _coregister,
    "ingest": _ingest,
    "verify": _verify,
    "inspect": _inspect,
    "repair": _repair,
    "sensors": _sensors,
}
