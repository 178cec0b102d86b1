"""One module per public layout of ready-made chips.

Each says `LABELS`, `sensors()`, `places(folder)`, which walks the folder once and returns {place: what its `tiles` needs},
and `tiles(place, found, grid)`. A place is the unit of reading: one that cannot be read is set aside with its reason.

`splits(folder, places)` returns the split of every place, as published or with what must stay together kept together;
a place that it does not name is left out. A layout without it is split by the hashes of its places' names. Layouts of
small chips say how many `PLACES_PER_SHARD`. Modules whose names begin with _ are what several layouts share.
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
