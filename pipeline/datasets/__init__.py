"""One module per public layout of ready-made chips.

Each says `LABELS`, `sensors()`, `places(folder)` (names of the places found) and `tiles(folder, place, grid)`. A place
is the unit of splitting: all its tiles go to one split. A layout with an official split adds `splits(folder)`, place ->
split; otherwise places are split by the hashes of their names.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType

from pipeline.errors import InputError


def layout_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def load_layout(name: str) -> ModuleType:
    """Return the layout module called `name`."""
    if name not in layout_names():
        close = difflib.get_close_matches(name, layout_names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise InputError(f"layout '{name}' is unknown (known: {', '.join(layout_names())}){hint}")
    return importlib.import_module(f"{__name__}.{name}")
