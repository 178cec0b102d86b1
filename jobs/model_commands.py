"""The commands that make, compare and use models: as in `data_commands`, a job is imported when it is asked for."""

# mypy: disable-error-code="valid-type"
# For classes of recipes that are known when it runs: beside a field, the help would show it.

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction

from jobs.arguments import parse, recipe_of
from pipeline.errors import InputError


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
class Report:
    """Write one static HTML page about one or several runs."""

    runs: Positional[tuple[str, ...]]
    """Folders of runs."""
    out: str | None = None
    """Path of the page; default: report.html in the first run's folder."""


def _export(arguments: list[str]) -> dict[str, Any]:
    from jobs.export import export

    options = parse(Export, arguments, "export")
    return export(options.run, options.model, options.step, options.formats, options.data, options.scores, options.licence)


def _pretrain(arguments: list[str]) -> dict[str, Any]:
    from jobs.pretrain import pretrain

    name, chosen = recipe_of("pretrain", arguments)

    @dataclass(frozen=True)
    class Options:
        archive: Positional[str]
        run: Positional[str]
        start_from: str | None = None
        """Run or model whose weights it begins with; sensors that they know stay normalised as they were for them."""
        recipe: OmitArgPrefixes[type(chosen)] = chosen

    options = parse(Options, arguments[1:], f"pretrain {name}", f"Train recipe '{name}' on an archive.")
    return pretrain(name, options.recipe, options.archive, options.run, options.start_from)


def _estimate(arguments: list[str]) -> dict[str, Any]:
    from jobs.estimate import EstimateConfig, estimate

    name, chosen = recipe_of("pretrain", arguments, "estimate")

    @dataclass(frozen=True)
    class Options:
        cluster: OmitArgPrefixes[EstimateConfig] = field(default_factory=EstimateConfig)
        recipe: OmitArgPrefixes[type(chosen)] = chosen

    options = parse(Options, arguments[1:], f"estimate {name}", f"What a run of '{name}' needs and costs before it starts.")
    return estimate(options.recipe, options.cluster)


def _distill(arguments: list[str]) -> dict[str, Any]:
    from jobs.distill import distill

    name, chosen = recipe_of("distill", arguments)

    @dataclass(frozen=True)
    class Options:
        teacher_run: Positional[str]
        archive: Positional[str]
        run: Positional[str]
        recipe: OmitArgPrefixes[type(chosen)] = chosen

    options = parse(Options, arguments[1:], f"distill {name}", f"Teach recipe '{name}' what a pretrained encoder knows.")
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

    options = parse(Options, arguments, "evaluate", "Compare models on labels of archives, beside baselines.")
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

    options = parse(Options, arguments, "embed", "Embed an archive's tiles, or an image of any size. Goes on where it was killed.")
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

    options = parse(Options, arguments, "embed search", "Find what looks alike in an embedded archive or image.")
    return search(options.index, options.like, options.out, options.config)


def _report(arguments: list[str]) -> dict[str, Any]:
    from jobs.report import report

    options = parse(Report, arguments, "report")
    return report(list(options.runs), options.out)


COMMANDS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "pretrain": _pretrain,
    "export": _export,
    "distill": _distill,
    "estimate": _estimate,
    "evaluate": _evaluate,
    "embed": _embed,
    "report": _report,
}
