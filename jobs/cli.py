"""The command `terraloom`: arguments in, one job run, its summary out.

Exit status 0: done. 2: the input is wrong, one line says what to do. 1: a run that failed, one line says why; anything else,
with the traceback.
"""

import difflib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TextIO

import tyro
from pydantic import ValidationError
from tyro.conf import AvoidSubcommands, FlagConversionOff, OmitArgPrefixes, Positional, UseAppendAction

from models.errors import InputError as ModelInputError
from pipeline.errors import InputError, RunFailed

USAGE = """usage: terraloom JOB ... [--json]

  simulate   OUT                               render a synthetic planet: scenes of four sensors with known truth
  scan       FOLDER                            describe plain raster files as a STAC catalog
  coregister SCENES ARCHIVE                    register scenes to each other and cut them into an archive
  ingest     LAYOUT FOLDER ARCHIVE             put ready-made chips into an archive
  verify     ARCHIVE                           prove an archive's checksums, counts and value ranges
  inspect    ARCHIVE                           say what is in an archive
  repair     ARCHIVE                           make its catalog anew from whole shards, list what is lost
  pretrain   RECIPE ARCHIVE RUN                train a foundation model
  export     RUN MODEL                         write the encoder of a checkpoint, also while the run goes on
  distill    RECIPE TEACHER_RUN ARCHIVE RUN    teach a small student
  estimate   RECIPE --gpus N --gpu h200        memory, hours, data rates and price of a pretrain run before it starts
  evaluate   TASK MODEL_RUN RUN                compare models on labels, beside baselines
  embed      MODEL_RUN ARCHIVE|RASTER OUT      embeddings of an archive's tiles, or of an image of any size
  embed      search INDEX --like WHAT          what lies in an embedded archive or image and looks alike
  report     RUN...                            one HTML page about runs
  sensors    list | show NAME | check FILE     the known sensors; all that is wrong with one of your own
  submit     [--address URL] JOB ...           run a job on a Ray cluster through its job server
  submit     follow | status | stop SUBMISSION a job that was submitted

terraloom JOB --help says more. --json: the last line on standard output is the summary as JSON.
"""


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
class Export:
    """Write an encoder as safetensors and JSON with a model card, and as graphs for other runtimes; the run may still go on."""

    run: Positional[str]
    """Folder of a pretrain or distill run, or of a finished model inside one."""
    model: Positional[str]
    """Folder for the encoder."""
    step: int | None = None
    """Of a checkpoint that was kept (--keep-every, --keep-best); default: the last one."""
    formats: tuple[Literal["safetensors", "torch", "onnx", "int8"], ...] = ("safetensors",)
    """safetensors always; torch: torch.export; int8: ONNX with whole numbers in its products, for CPUs. A file for each sensor."""
    data: str | None = None
    """Archive on whose tiles the files are compared with the encoder; default: the one it was trained on."""
    scores: str | None = None
    """Folder of an evaluate run whose table goes into the card."""
    licence: str | None = None
    """Of the weights, for the card."""


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


@dataclass(frozen=True)
class Report:
    """Write one static HTML page about one or several runs."""

    runs: Positional[tuple[str, ...]]
    out: str | None = None
    """Path of the page; default: report.html in the first run's folder."""


def _simulate(arguments: list[str]) -> dict[str, Any]:
    from jobs.simulate import simulate_planet
    from pipeline.simulate import SimulateConfig

    @dataclass(frozen=True)
    class Options(Simulate):
        config: OmitArgPrefixes[SimulateConfig] = field(default_factory=SimulateConfig)

    options = _parse(Options, arguments, "simulate", Simulate.__doc__)
    return simulate_planet(options.out, options.config)


def _scan(arguments: list[str]) -> dict[str, Any]:
    from jobs.simulate import scan_folder

    options = _parse(Scan, arguments, "scan")
    return scan_folder(options.folder, options.sensor, options.datetime, options.out, options.unit)


def _coregister(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.coregister import coregister
    from pipeline.coregister import CoregisterConfig
    from pipeline.grid import Grid

    options = _parse(Coregister, arguments, "coregister")
    config = CoregisterConfig(options.reference, options.max_shift_m, options.min_valid_fraction, options.register)
    grid = Grid(**asdict(options.grid))
    connect()
    return coregister(options.scenes, options.archive, grid, config, options.labels)


def _ingest(arguments: list[str]) -> dict[str, Any]:
    from jobs.ingest import ingest
    from pipeline.grid import Grid

    options = _parse(Ingest, arguments, "ingest")
    return ingest(options.layout, options.folder, options.archive, Grid(**asdict(options.grid)))


def _verify(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.archives import verify
    from pipeline.archive import open_archive

    options = _parse(Verify, arguments, "verify")
    open_archive(options.archive).catalog()
    connect()
    return verify(options.archive)


def _inspect(arguments: list[str]) -> dict[str, Any]:
    from jobs.inspect import inspect

    return inspect(_parse(Inspect, arguments, "inspect").archive)


def _export(arguments: list[str]) -> dict[str, Any]:
    from jobs.export import export

    options = _parse(Export, arguments, "export")
    return export(options.run, options.model, options.step, options.formats, options.data, options.scores, options.licence)


def _repair(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.repair import repair
    from pipeline.archive import open_archive

    options = _parse(Repair, arguments, "repair")
    open_archive(options.archive)
    connect()
    return repair(options.archive)


def _pretrain(arguments: list[str]) -> dict[str, Any]:
    from jobs.pretrain import pretrain

    name, chosen = _recipe("pretrain", arguments)

    @dataclass(frozen=True)
    class Options:
        archive: Positional[str]
        run: Positional[str]
        recipe: OmitArgPrefixes[type(chosen)] = chosen  # type: ignore[valid-type]

    options = _parse(Options, arguments[1:], f"pretrain {name}", f"Train recipe '{name}' on an archive.")
    return pretrain(name, options.recipe, options.archive, options.run)


def _estimate(arguments: list[str]) -> dict[str, Any]:
    from jobs.estimate import EstimateConfig, estimate

    name, chosen = _recipe("pretrain", arguments, "estimate")

    @dataclass(frozen=True)
    class Options:
        cluster: OmitArgPrefixes[EstimateConfig] = field(default_factory=EstimateConfig)
        recipe: OmitArgPrefixes[type(chosen)] = chosen  # type: ignore[valid-type]

    options = _parse(Options, arguments[1:], f"estimate {name}", f"What a run of '{name}' needs and costs before it starts.")
    return estimate(options.recipe, options.cluster)


def _distill(arguments: list[str]) -> dict[str, Any]:
    from jobs.distill import distill

    name, chosen = _recipe("distill", arguments)

    @dataclass(frozen=True)
    class Options:
        teacher_run: Positional[str]
        archive: Positional[str]
        run: Positional[str]
        recipe: OmitArgPrefixes[type(chosen)] = chosen  # type: ignore[valid-type]

    options = _parse(Options, arguments[1:], f"distill {name}", f"Teach recipe '{name}' what a pretrained encoder knows.")
    return distill(name, options.recipe, options.teacher_run, options.archive, options.run)


def _evaluate(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.evaluate import EvaluateConfig, evaluate

    @dataclass(frozen=True)
    class Options:
        task: Positional[str]
        """A label of the archives, such as landcover; several divided by commas; or all."""
        model_run: Positional[str]
        """Run folder of a finished pretrain or distill."""
        run: Positional[str]
        data: UseAppendAction[tuple[str, ...]] = ()
        """Archive with the labels, once for each; default: the one the model was trained on."""
        also: tuple[str, ...] = ()
        """Run folders of further models for the same table."""
        config: OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)

    options = _parse(Options, arguments, "evaluate", "Compare models on labels of archives, beside baselines.")
    connect()
    return evaluate(options.task, options.model_run, options.also, options.data, options.run, options.config)


def _embed(arguments: list[str]) -> dict[str, Any]:
    from cluster.connect import connect
    from jobs.embed import EmbedConfig, embed, embed_into

    if arguments[:1] == ["search"]:
        return _search(arguments[1:])

    @dataclass(frozen=True)
    class Options:
        model_run: Positional[str]
        """Run folder of a finished pretrain or distill, or a model folder inside one."""
        source: Positional[str]
        """An archive; or a raster file, a folder of them, or a STAC file of scenes of one ground."""
        out: Positional[str | None] = None
        """Folder for the embeddings."""
        into_archive: bool = False
        """Keep all maps of the tiles beside the archive instead, so that 'distill --precomputed True' need not run the teacher."""
        config: OmitArgPrefixes[EmbedConfig] = field(default_factory=EmbedConfig)

    options = _parse(Options, arguments, "embed", "Embed an archive's tiles, or an image of any size. Goes on where it was killed.")
    if (options.out is None) != options.into_archive:
        raise InputError("embed writes to a folder or into the archive; expected one of OUT and --into-archive True")
    connect()
    if options.out is None:
        return embed_into(options.model_run, options.source)
    return embed(options.model_run, options.source, options.out, options.config)


def _search(arguments: list[str]) -> dict[str, Any]:
    from jobs.search import SearchConfig, search

    @dataclass(frozen=True)
    class Options:
        index: Positional[str]
        """Folder that 'terraloom embed' wrote as geoparquet."""
        like: str
        """An id of the index, a site, LON,LAT in degrees, or the path of an image."""
        out: str | None = None
        """Folder for neighbours.json and neighbours.png; default: INDEX/search."""
        config: OmitArgPrefixes[SearchConfig] = field(default_factory=SearchConfig)

    options = _parse(Options, arguments, "embed search", "Find what looks alike in an embedded archive or image.")
    return search(options.index, options.like, options.out, options.config)


def _report(arguments: list[str]) -> dict[str, Any]:
    from jobs.report import report

    options = _parse(Report, arguments, "report")
    return report(list(options.runs), options.out)


def _sensors(arguments: list[str]) -> dict[str, Any]:
    from jobs.sensors import check_sensor, list_sensors, show_sensor

    @dataclass(frozen=True)
    class Options:
        action: Positional[Literal["list", "show", "check"]] = "list"
        name: Positional[str | None] = None
        """show: a known sensor or a sensor YAML; check: a sensor YAML."""

    options = _parse(Options, arguments, "sensors", "List the known sensors, show one, or check a sensor YAML.")
    if options.action == "list":
        return list_sensors()
    if options.name is None:
        raise InputError(f"sensors {options.action} needs a name; expected 'terraloom sensors {options.action} NAME'")
    return show_sensor(options.name) if options.action == "show" else check_sensor(options.name)


def _submit(arguments: list[str]) -> dict[str, Any]:
    from cluster.submit import follow, job_server, status, stop, submit

    address = None
    if arguments[:1] == ["--address"]:
        address, arguments = (arguments[1] if len(arguments) > 1 else None), arguments[2:]
    about = {"follow": follow, "status": status, "stop": stop}
    if arguments and arguments[0] in about:
        if len(arguments) != 2:
            raise InputError(f"expected 'terraloom submit [--address URL] {arguments[0]} SUBMISSION', as submit has named it")
        return about[arguments[0]](job_server(address), arguments[1])
    if not arguments or arguments[0] not in JOBS or arguments[0] == "submit":
        raise InputError("nothing to submit; expected 'terraloom submit [--address URL] JOB ...' with a job and its arguments")
    return submit(arguments, address)


JOBS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "simulate": _simulate,
    "scan": _scan,
    "coregister": _coregister,
    "ingest": _ingest,
    "verify": _verify,
    "inspect": _inspect,
    "repair": _repair,
    "pretrain": _pretrain,
    "export": _export,
    "distill": _distill,
    "estimate": _estimate,
    "evaluate": _evaluate,
    "embed": _embed,
    "report": _report,
    "sensors": _sensors,
    "submit": _submit,
}


def _recipe(kind: str, arguments: list[str], job: str | None = None) -> tuple[str, Any]:
    from jobs.recipes import load_recipe, recipes

    if not arguments or arguments[0] in ("-h", "--help"):
        shown = "\n".join(f"  {n:14} {(f.__doc__ or '').splitlines()[0]}" for n, f in recipes(kind).items())
        inputs = {"pretrain": "ARCHIVE RUN", "distill": "TEACHER_RUN ARCHIVE RUN", "estimate": "--gpus N --gpu NAME"}
        job = job or kind
        print(
            f"usage: terraloom {job} RECIPE {inputs[job]} [options]\n\nrecipes:\n{shown}"
            f"\n\nterraloom {job} RECIPE --help lists its options."
        )
        raise SystemExit(0 if arguments else 2)
    return arguments[0], load_recipe(kind, arguments[0])


def _parse(kind: Any, arguments: list[str], job: str, description: str | None = None) -> Any:
    """Return an instance of dataclass `kind` from the command line; unknown options are one line with the nearest known."""
    settings: dict[str, Any] = {
        "prog": f"terraloom {job}",
        "description": description,
        "config": (AvoidSubcommands, FlagConversionOff),
    }
    try:
        options, unknown = tyro.cli(kind, args=arguments, return_unknown_args=True, **settings)
    except ValidationError as error:
        raise InputError("; ".join(f"{'.'.join(map(str, e['loc'])) or job}: {e['msg']}" for e in error.errors())) from None
    if unknown:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # tyro 1: nothing else lists the options yet
            parser = tyro.extras.get_parser(kind, **settings)
        known = [name for name in parser._option_string_actions if name.startswith("--")]
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise InputError(f"argument '{unknown[0]}' is unknown to 'terraloom {job}'{hint}; see terraloom {job} --help")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run one job and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    wants_json = "--json" in arguments
    arguments = [a for a in arguments if a != "--json"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        raise SystemExit(0 if arguments else 2)
    output = sys.stdout
    if arguments[0] != "submit" and {"-h", "--help"}.isdisjoint(arguments):
        # The output is the summary alone: Ray prints notices about its cluster to standard output, until the process ends.
        sys.stdout = sys.stderr
    try:
        if arguments[0] not in JOBS:
            raise InputError(f"job '{arguments[0]}' is unknown (known: {', '.join(JOBS)}); see terraloom --help")
        summary = JOBS[arguments[0]](arguments[1:])
    except (InputError, ModelInputError) as error:
        print(f"terraloom: {_first_cause(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except RunFailed as error:
        print(f"terraloom: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if wants_json:
        print(json.dumps(summary, default=str), file=output, flush=True)
    else:
        _show(summary, output)
    raise SystemExit(int(summary.get("exit_status", 0)))


def _first_cause(error: Exception) -> str:
    # Errors from Ray tasks carry the original as `cause`; their own text is a traceback.
    return str(getattr(error, "cause", None) or error)


def _show(summary: dict[str, Any], output: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=output)
    if not console.is_terminal:
        console = Console(file=output, width=150)  # what is piped should not be folded to 80 columns
    for key, value in summary.items():
        if key not in ("table", "memory_gib_by_micro_batch"):
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            console.print(f"[bold]{key}[/bold]: {shown}", highlight=False, soft_wrap=True)
    if "memory_gib_by_micro_batch" in summary:
        table = Table(title=f"GiB of a GPU, which has {summary['gpu_memory_gib']:g}")
        for column in ("micro-batch", *(f"ZeRO {stage}" for stage in summary["memory_gib_per_gpu"])):
            table.add_column(column, justify="right")
        for size, needs in summary["memory_gib_by_micro_batch"].items():
            said = (f"{need:.1f}" if need <= summary["gpu_memory_gib"] else f"[red]{need:.1f} no[/red]" for need in needs.values())
            table.add_row(size, *said)
        console.print(table)
    for title, lines in _by_task(summary.get("table", [])).items():
        table = Table(title=title)
        for column in ("sensors", "model", "method", "labels", "mean ± spread", "95 %", "seeds", "train", "test", "parameters"):
            table.add_column(column, no_wrap=column in ("mean ± spread", "95 %"))
        for row in lines:
            size = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else ""
            score, around = f"{row['mean']:.3f} ± {row['spread']:.3f}", f"{row['low']:.3f} … {row['high']:.3f}"
            counts = (str(row["seeds"]), str(row["num_train"]), str(row["num_test"]))
            how = f"{row['method']}, {row['perturbation']} {row['strength']:g}" if row["perturbation"] else row["method"]
            table.add_row(row["sensors"], row["model"], how, f"{row['fraction']:.0%}", score, around, *counts, size)
        console.print(table)


def _by_task(table: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of an evaluation's table by what they measure."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        found.setdefault(f"{row['task']} ({row['metric']})", []).append(row)
    return found


if __name__ == "__main__":
    main()
