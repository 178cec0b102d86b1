"""Frozen configuration dataclasses to plain dictionaries and back.

This file decides how a configuration is written in JSON and that an unknown key is an error naming the nearest known
one. What the values may be is checked by each dataclass itself.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from models.errors import InputError

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Return `config` as nested dictionaries and lists that JSON can hold."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(kind: type[C], content: Any, where: str = "config") -> C:
    """Build a `kind` from `content`; `where` names the place in error messages."""
    if not isinstance(content, dict):
        raise InputError(f"{where} is {type(content).__name__}, expected a mapping of {kind.__name__}'s keys")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    known = [field.name for field in fields]
    for key in content:
        if key not in known:
            raise InputError(f"{where} has unknown key '{key}' (known: {', '.join(known)}){hint(key, known)}")
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in content]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}; {kind.__name__} needs {', '.join(required)}")
    return kind(**{key: _typed(hints[key], value, f"{where}.{key}") for key, value in content.items()})


def updated(config: C, content: Any) -> C:
    """Return `config` with the values that JSON holds of one of the same shape."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.replace(config, **{name: updated(getattr(config, name), value) for name, value in content.items()})
    return _frozen(content)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def hint(name: str, known: typing.Iterable[str]) -> str:
    """Return "; did you mean '...'?" if one of `known` is close to `name`, else nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _option(options: list[type], value: Any, where: str) -> type:
    """Return the dataclass whose field `kind` has the default that `value` states."""
    kinds = {str(getattr(option, "kind")): option for option in options}  # noqa: B009
    stated = value.get("kind") if isinstance(value, dict) else None
    if stated not in kinds:
        raise InputError(f"{where}.kind is {stated!r}, expected one of {', '.join(map(repr, kinds))}")
    return kinds[stated]


def _subclasses(kind: Any) -> list[type]:
    """Return the dataclasses that derive from `kind`, near and far, that have been imported."""
    near = [part for part in kind.__subclasses__() if getattr(part, "kind", "")]
    return near + [far for part in near for far in _subclasses(part)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(hint_type: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint_type), typing.get_args(hint_type)
    if origin in (types.UnionType, typing.Union):
        options = [a for a in arguments if a is not type(None)]
        if value is None and len(options) < len(arguments):
            return None
        return _typed(options[0] if len(options) == 1 else _option(options, value, where), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} is {value!r}, expected a list")
        return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where} is {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if dataclasses.is_dataclass(hint_type):
        if kinds := _subclasses(hint_type):
            hint_type = _option(kinds, value, where)
        return from_dict(typing.cast(type, hint_type), value, where)
    if hint_type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint_type) or (isinstance(value, bool) and hint_type is not bool):
        raise InputError(f"{where} is {value!r}, expected {hint_type.__name__}")
    return value
