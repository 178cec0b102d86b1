"""What a sweep does: its cells, what they are asked besides their loss, and which finding is made of them.

A plan is made by a function of a module in `plans`, from options and the archive's sensors, or read from a YAML file
(`file.py`). Nothing is spent to make one.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jobs.sweeping import plans
from jobs.sweeping.cell import Cell
from models.config import hint
from pipeline.archive import Archive
from pipeline.errors import InputError

Finding = Literal["law", "isoflop", "rates", "arms"]


@dataclass(frozen=True)
class Plan:
    """finding: 'law', L(N, D); 'isoflop', the best size of each budget; 'rates', the best rate of each width; 'arms', a table

    in which every arm is compared with `reference` and with what it was before training.

    question  what it is to answer, in words
    versus    pairs of arms that are compared, too
    caveats   what its answer does not say
    budgets   operations that a law is asked what to spend on; none: those of the largest run, and ten times as many
    """

    name: str
    question: str
    cells: tuple[Cell, ...]
    finding: Finding = "arms"
    reference: str = ""
    versus: tuple[tuple[str, str], ...] = ()
    caveats: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.cells:
            raise InputError(f"plan '{self.name}' has no cells; give it sizes, budgets and seeds")
        by_key: dict[str, Cell] = {}
        for cell in self.cells:
            if (other := by_key.setdefault(cell.key, cell)) is not cell:
                raise InputError(f"plan '{self.name}' has the same run twice: {other} and {cell}; leave one out")
        if unknown := {cell.teacher for cell in self.cells} - {""} - set(self.arms):
            raise InputError(f"plan '{self.name}' has no arm '{sorted(unknown)[0]}' to teach another (has {', '.join(self.arms)})")
        for compared in {self.reference, *(arm for pair in self.versus for arm in pair)} - {"", *self.arms}:
            raise InputError(f"plan '{self.name}' has no arm '{compared}' to compare with (has {', '.join(self.arms)})")

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(cell.arm for cell in self.cells))

    def teacher_of(self, cell: Cell) -> Cell:
        """Return the cell whose model `cell` learns from: of its seed, else the first of that arm."""
        found = [other for other in self.cells if other.arm == cell.teacher]
        return next((other for other in found if other.seed == cell.seed), found[0])


@dataclass(frozen=True)
class Maker:
    """options: the dataclass of what can be asked for, each with a default; make(options, archive) -> Plan."""

    options: Any
    make: Callable[[Any, Archive], Plan]


def makers() -> dict[str, Maker]:
    """Return the plans by name: what modules in `plans` have as PLANS."""
    found: dict[str, Maker] = {}
    for info in pkgutil.iter_modules(plans.__path__):
        module = importlib.import_module(f"{plans.__name__}.{info.name}")
        found |= {name: Maker(*of) for name, of in getattr(module, "PLANS", {}).items()}
    return found


def load_maker(name: str) -> Maker:
    known = makers()
    if name not in known:
        raise InputError(f"plan '{name}' is unknown and no .yaml file (known: {', '.join(known)}){hint(name, known)}")
    return known[name]
