"""A dataclass from the plain values of a TOML file; a message about a mistake names its key."""

import dataclasses
import types
import typing
from typing import Any, Literal

from loratory.errors import UserError, did_you_mean


def dataclass_from(cls: type, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{prefix or 'The task file'} must be a section", where, f"[{prefix}]", repr(values))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    found = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if key not in fields:
            fix = did_you_mean(key, fields) or f"known keys: {', '.join(fields)}"
            raise UserError(f"Unknown key {name!r}", where, fix=fix)
        found[key] = _value(hints[key], value, where, name)
    return cls(**found)


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    """``value`` as the type ``hint`` asks, or UserError."""
    if dataclasses.is_dataclass(hint):
        return dataclass_from(typing.cast(type, hint), value, where, name)
    for option in union_members(hint):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in args and isinstance(value, str):
            return value
        if origin is tuple:
            items = [value] if isinstance(value, args[0]) and hint == tuple[str, ...] else value
            if isinstance(items, list) and all(_is(args[0], item) for item in items):
                return tuple(args[0](item) for item in items)
        elif origin is dict:
            if isinstance(value, dict) and all(isinstance(v, args[1]) for v in value.values()):
                return dict(value)
        elif isinstance(option, type) and _is(option, value):
            return option(value)
    raise UserError(f"{name} has the wrong type", where, type_in_words(hint), f"{value!r} ({type(value).__name__})")


def union_members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(o for o in typing.get_args(hint) if o is not type(None))
    return (hint,)


def _is(kind: type, value: Any) -> bool:
    """Whether a TOML value may stand for ``kind``; an integer may for a float, a boolean never for a number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def type_in_words(hint: Any) -> str:
    def words(option: Any) -> str:
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is Literal:
            return " or ".join(repr(a) for a in args)
        if origin is tuple:
            return f"a list of {type_in_words(args[0])}"
        if origin is dict:
            return "a table of plain values"
        return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(option, str(option))

    return ", or ".join(words(option) for option in union_members(hint))
