"""What `terraloom retrain` is told: a YAML file, typed; what is unknown or missing in it is one line."""

import posixpath
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.arguments import flat_options, parse_recipe
from jobs.evaluate import EvaluateConfig
from pipeline import storage
from pipeline.coregister import CoregisterConfig
from pipeline.definition import hint
from pipeline.errors import InputError

FORM = ConfigDict(frozen=True, extra="forbid")


class Suite(BaseModel):
    """What champion and challenger are compared on. Nothing may be added to it after the first round."""

    model_config = FORM

    archive: str
    """With labels; not the one that grows."""
    tasks: tuple[str, ...] = Field(min_length=1)
    """Labels of the archive; on none of them may a challenger be worse."""
    target: str
    """The task on which it must be better."""
    sensors: tuple[str, ...] = ()
    """Sensors to compare on; none: all that the models and the labels share."""
    protocols: tuple[str, ...] = ()
    """As those of `terraloom evaluate`; none: the usual ones of each task."""
    seeds: int = Field(3, ge=1)
    """Of heads and their training."""
    ignore: tuple[str, ...] = ()
    """Classes that count for nothing."""

    @model_validator(mode="after")
    def _check(self) -> "Suite":
        if self.target not in self.tasks:
            raise ValueError(f"target '{self.target}' is none of the tasks {', '.join(self.tasks)}; name it there, too")
        return self

    def config(self) -> EvaluateConfig:
        """Return how the two are compared: with one another, on all labels."""
        settings = {"seeds": self.seeds, "sensors": self.sensors, "protocols": self.protocols, "ignore": self.ignore}
        return EvaluateConfig(**settings, baselines=False)  # type: ignore[arg-type]


class Schedule(BaseModel):
    """One line of models, each trained further from the one before with the scenes that have come since."""

    model_config = FORM

    scenes: str
    """STAC ItemCollection or catalog to which scenes are added, or a folder with scenes.json; local, s3:// or https://."""
    archive: str
    """That new scenes are added to, and that is trained on."""
    folder: str
    """For rounds, the lock, and, unless `registry` says otherwise, the registry."""
    champion: str
    """Pretrain run that is champion as long as the registry has none."""
    recipe: str
    """Of the challengers."""
    options: dict[str, Any] = {}
    """Of the recipe, as on the command line: `num_steps: 400`."""
    suite: Suite
    registry: str = ""
    """Folder on any storage, or mlflow:NAME."""
    replay: float = Field(0.5, ge=0, lt=1)
    """Share of a challenger's samples that are old ones."""
    min_scenes: int = Field(1, ge=1)
    """A round begins when so many new scenes are there."""
    labels: str | None = None
    """Folder of label rasters for the archive, as those of `terraloom coregister`."""
    registration: CoregisterConfig = CoregisterConfig()
    """The settings that `terraloom coregister` made the archive with."""

    @model_validator(mode="after")
    def _check(self) -> "Schedule":
        if self.suite.archive == self.archive:
            raise ValueError("suite.archive is the archive that grows; the suite needs one of its own, that stays as it is")
        if taken := {"new_scenes", "replay", "start_from"} & set(self.options):
            raise ValueError(f"options has {sorted(taken)[0]}, which each round sets by itself; leave it out")
        return self

    def configured(self) -> Any:
        """Return the recipe with its options."""
        return parse_recipe("pretrain", self.recipe, flat_options(self.options))


def read_schedule(url: str) -> Schedule:
    """Read a schedule; paths in it that are relative are relative to its own folder."""
    try:
        content = yaml.safe_load(storage.read_bytes(url))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"no schedule at '{url}'; expected a YAML file, docs/jobs/retrain.md shows one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"schedule '{url}' is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"schedule '{url}' holds a {type(content).__name__}, expected keys and values")
    try:
        schedule = Schedule.model_validate(content)
    except ValidationError as error:
        raise InputError(f"schedule '{url}': {'; '.join(map(_said, error.errors()))}") from None
    schedule = _located(schedule, storage.absolute(url).rpartition("/")[0])
    schedule.configured()
    schedule.suite.config()
    return schedule


def _said(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        kinds = {"suite": list(Suite.model_fields), "registration": list(CoregisterConfig.__dataclass_fields__)}
        known = (
            kinds.get(str(error["loc"][0]), list(Schedule.model_fields)) if len(error["loc"]) > 1 else list(Schedule.model_fields)
        )
        return f"'{where}' is unknown (known: {', '.join(known)}){hint(str(error['loc'][-1]), known)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _located(schedule: Schedule, folder: str) -> Schedule:
    def at(path: str) -> str:
        if "://" in path or path.startswith(("/", "mlflow:")):
            return path
        scheme, _, rest = folder.rpartition("://")
        return (f"{scheme}://" if scheme else "") + posixpath.normpath(posixpath.join(rest, path))

    changed = {name: at(getattr(schedule, name)) for name in ("scenes", "archive", "folder", "champion")}
    changed |= {name: at(value) for name in ("registry", "labels") if (value := getattr(schedule, name))}
    suite = schedule.suite.model_copy(update={"archive": at(schedule.suite.archive)})
    return schedule.model_copy(update={**changed, "suite": suite})
