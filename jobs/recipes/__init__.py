"""Named, complete runs. A recipe is a public function of a module here that returns a recipe object."""

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from pipeline.errors import InputError


def recipes(kind: str) -> dict[str, Any]:
    """Return the recipes of `kind` ('pretrain' or 'distill') by name, as functions without arguments."""
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if getattr(module, "KIND", None) == kind:
            functions = inspect.getmembers(module, inspect.isfunction)
            found |= {n: f for n, f in functions if f.__module__ == module.__name__ and not n.startswith("_")}
    return found


def load_recipe(kind: str, name: str) -> Any:
    """Return the configuration of recipe `name`."""
    known = recipes(kind)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise InputError(f"{kind} recipe '{name}' is unknown (known: {', '.join(sorted(known))}){hint}")
    return known[name]()
