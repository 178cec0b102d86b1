"""One module per protocol: how a contender answers a task.

Each says `KINDS`, the kinds of tasks it takes, `ROLE`, what it asks of a contender, and `answer(question)`, which trains what the
protocol trains on `question.train`, chooses what it chooses on `question.val`, and answers `question.test`.
Modules whose names begin with _ are what several protocols share.
"""

import importlib
import pkgutil
from types import ModuleType

from pipeline.definition import hint
from pipeline.errors import InputError


def protocol_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def load_protocol(name: str) -> ModuleType:
    """Return the protocol module called `name`."""
    if name not in protocol_names():
        raise InputError(f"protocol '{name}' is unknown (known: {', '.join(protocol_names())}){hint(name, protocol_names())}")
    return importlib.import_module(f"{__name__}.{name}")
