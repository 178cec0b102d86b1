"""A recipe with some of its settings changed, as plans write them: 'train.optimiser.learning_rate' -> 0.001.

Decides how plain values (of YAML, JSON) become the typed ones of a recipe, and that a wrong name is an error naming the
nearest. What values may be is checked by each dataclass itself.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from models.config import hint
from models.errors import InputError as ModelInputError
from pipeline.errors import InputError

Setting = tuple[str, Any]
"""A path of names divided by dots, and a plain value."""


def changed(config: Any, settings: Sequence[Setting]) -> Any:
    """Return `config` with all of the settings at once, a later one before an earlier one of the same path.

    A mapping changes what it names and leaves the rest; with a `kind` (or where nothing stands yet) it is a new value: of the
    dataclass with that `kind`, or of that name.
    """
    nested: dict[str, Any] = {}
    for path, value in settings:
        *outer, last = path.split(".")
        part = nested
        for name in outer:
            part = part.setdefault(name, {})
            if not isinstance(part, dict):
                raise InputError(f"setting '{path}' is inside '{name}', which another setting makes {part!r}; give one of them")
        both = isinstance(value, dict) and isinstance(part.get(last), dict)
        part[last] = part[last] | value if both else value
    return _made(type(config), config, nested, "")


def _typed(kind: Any, own: Any, value: Any, path: str) -> Any:
    """Return a plain value as the type `kind` says, `own` being what stands there now."""
    if isinstance(value, dict):
        return _mapping(kind, own, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return _typed(option, own, value, path)
            except InputError:
                continue
        raise InputError(f"setting '{path}' is {value!r}, expected {kind}")
    if origin is tuple and isinstance(value, list | tuple):
        parts = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(part, None, item, path) for part, item in zip(parts, value))
    if origin is typing.Literal and value in arguments:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if origin is None and isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"setting '{path}' is {value!r}, expected {getattr(kind, '__name__', None) or kind}")


def _mapping(kind: Any, own: Any, value: dict[str, Any], path: str) -> Any:
    options: list[Any] = [part for part in (typing.get_args(kind) or (kind,)) if dataclasses.is_dataclass(part)]
    names = {str(getattr(option, "kind", None) or option.__name__): option for option in options}
    wanted = value.get("kind")
    if wanted is not None and wanted not in names:
        raise InputError(f"setting '{path}' is of kind '{wanted}', expected one of {', '.join(names) or 'none'}")
    if wanted is None and dataclasses.is_dataclass(own):
        return _made(type(own), own, value, path)
    if wanted is None and len(options) != 1:
        raise InputError(f"setting '{path}' is {value!r}, expected {'a kind' if options else 'a plain value'}")
    inner = {name: part for name, part in value.items() if name != "kind"}
    return _made(names[wanted] if wanted is not None else options[0], None, inner, path)


def _made(kind: Any, own: Any, value: dict[str, Any], path: str) -> Any:
    """Return `own` with all of `value` changed at once, or without it a new `kind`."""
    hints, known = typing.get_type_hints(kind), [field.name for field in dataclasses.fields(kind)]
    for name in value:
        if name not in known:
            has = f"{kind.__name__} lacks (has {', '.join(known)}){hint(name, known)}"
            raise InputError(f"setting '{_inside(path, name)}' names '{name}', which {has}")
    typed = {name: _typed(hints[name], getattr(own, name, None), part, _inside(path, name)) for name, part in value.items()}
    try:
        return kind(**typed) if own is None else dataclasses.replace(own, **typed)
    except (ModelInputError, TypeError) as error:
        raise InputError(f"settings {', '.join(_inside(path, name) for name in value)}: {error}") from None


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
