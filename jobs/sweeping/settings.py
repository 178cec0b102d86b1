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
    """Return `config` with every setting, in order; a mapping changes what it names and leaves the rest.

    A mapping with a `kind` (or where nothing stands yet) is a new value: of a dataclass with that `kind`, or of that name.
    """
    for path, value in settings:
        config = _changed(config, path.split("."), value, path)
    return config


def _changed(config: Any, names: list[str], value: Any, path: str) -> Any:
    known = [field.name for field in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if names[0] not in known:
        has = f"has {', '.join(known)}" if known else "has no settings of its own"
        raise InputError(f"setting '{path}' names '{names[0]}', which {type(config).__name__} lacks ({has}){hint(names[0], known)}")
    own = getattr(config, names[0])
    if len(names) > 1:
        new = _changed(own, names[1:], value, path)
    else:
        new = _typed(typing.get_type_hints(type(config))[names[0]], own, value, path)
    try:
        return dataclasses.replace(config, **{names[0]: new})
    except ModelInputError as error:
        raise InputError(f"setting '{path}': {error}") from None


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
    options = [part for part in (typing.get_args(kind) or (kind,)) if dataclasses.is_dataclass(part)]
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
    if unknown := [name for name in value if name not in known]:
        raise InputError(
            f"setting '{path}' names '{unknown[0]}', which {kind.__name__} lacks (has {', '.join(known)}){hint(unknown[0], known)}"
        )
    typed = {name: _typed(hints[name], getattr(own, name, None), part, f"{path}.{name}") for name, part in value.items()}
    try:
        return kind(**typed) if own is None else dataclasses.replace(own, **typed)
    except (ModelInputError, TypeError) as error:
        raise InputError(f"setting '{path}': {error}") from None
