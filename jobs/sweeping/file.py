"""Plans of one's own, from YAML: arms x sizes x budgets x a grid of settings x seeds. docs/jobs/sweep.md shows one."""

import itertools
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.family import rate, shape
from jobs.sweeping.plan import Finding, Plan
from jobs.sweeping.settings import Setting
from pipeline import storage
from pipeline.errors import InputError

Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Part):
    """A recipe, what is changed in it, and the arm that teaches it, if it needs that."""

    recipe: str
    settings: dict[str, Any] = {}
    teacher: str = ""


class PlanFile(_Part):
    """One of `teraflops`, `samples` and `hours` says what runs may spend, each number a run of its own.

    sizes   dials of a family (`family.py`), whose rate is base_rate at size 2 and goes as width^-rate_exponent
    grid    paths of settings, each with the values to try; all combinations
    exams   names of losses, each with settings under which it is asked
    """

    name: str = "plan"
    question: str = ""
    arms: dict[str, Arm] = Field(min_length=1)
    seeds: int = Field(1, ge=1)
    teraflops: list[Positive] = []
    samples: list[Annotated[int, Field(gt=0)]] = []
    hours: list[Positive] = []
    sizes: list[int] = []
    base_rate: float = 0.0
    rate_exponent: float = 1.0
    grid: dict[str, list[Any]] = {}
    exams: dict[str, dict[str, Any]] = {}
    finding: Literal["law", "isoflop", "rates", "arms"] = "arms"
    reference: str = ""
    versus: list[tuple[str, str]] = []

    def plan(self) -> Plan:
        """Return what is to be run."""
        budgets = [Budget(flops=1e12 * value) for value in self.teraflops]
        budgets += [Budget(samples=value) for value in self.samples] + [Budget(hours=value) for value in self.hours]
        if not budgets:
            raise InputError(f"plan '{self.name}' says not what runs may spend; give it teraflops, samples or hours")
        exams = tuple((name, tuple(settings.items())) for name, settings in self.exams.items())
        cells = []
        for (name, arm), size in itertools.product(self.arms.items(), self.sizes or [0]):
            for values in itertools.product(*self.grid.values()):
                changes = dict(zip(self.grid, values))
                title = ", ".join(
                    [name, *([f"size {size}"] if size else []), *(f"{p.rpartition('.')[2]} {v}" for p, v in changes.items())]
                )
                settings = (*self._of_size(arm.recipe, size), *arm.settings.items(), *changes.items())
                for budget, seed in itertools.product(budgets, range(self.seeds)):
                    cells.append(Cell(title, arm.recipe, settings, seed, budget, arm.teacher, exams))
        finding: Finding = self.finding
        return Plan(self.name, self.question, tuple(cells), finding, self.reference, tuple(self.versus))

    def _of_size(self, recipe: str, size: int) -> tuple[Setting, ...]:
        if not size:
            return ()
        own: tuple[Setting, ...] = shape(recipe, size)
        if self.base_rate:
            own += (("train.optimiser.learning_rate", rate(self.base_rate, size, self.rate_exponent)),)
        return own


def read_plan(path: str) -> PlanFile:
    """Return the plan in a YAML file; raise InputError, naming the place, for what is wrong in it."""
    try:
        content = yaml.safe_load(storage.read_bytes(path))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"plan file '{path}' is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"plan file '{path}' is no YAML ({' '.join(str(error).split())})") from None
    try:
        return PlanFile.model_validate({"name": PurePosixPath(path).stem, **content} if isinstance(content, dict) else content)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"plan file '{path}': {'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
