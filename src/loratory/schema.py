"""Builds a dataclass from the plain values of a TOML file and checks them; error messages name the key."""

import dataclasses
import types
import typing
from typing import Any, Literal

from loratory.errors import UserError, did_you_mean


def dataclass_from(cls: type, values: Any, where: str, prefix: str) -> Any:
    """An instance of ``cls`` from a dict of its fields; missing fields get their defaults.

    ``prefix`` is the dotted key of the section ("" at the top level). Raises UserError for an unknown key or a value of
    the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{prefix or 'The task file'} must be a section", where, f"[{prefix}]", repr(values))
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else key
        if key not in fields:
            fix = did_you_mean(key, fields) or f"use one of the keys {', '.join(fields)}"
            raise UserError(f"Unknown key {name!r}", where, fix=fix)
        arguments[key] = _value(hints[key], value, where, name)
    return cls(**arguments)


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    """``value`` converted to the type ``hint``. Raises UserError if it has another type."""
    if dataclasses.is_dataclass(hint):
        return dataclass_from(typing.cast(type, hint), value, where, name)
    for option in union_members(hint):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in args and isinstance(value, str):
            return value
        if origin is tuple:
            items = [value] if isinstance(value, args[0]) and hint == tuple[str, ...] else value
            if isinstance(items, list) and all(_is_instance(args[0], item) for item in items):
                return tuple(args[0](item) for item in items)
        elif origin is dict:
            if isinstance(value, dict) and all(isinstance(v, args[1]) for v in value.values()):
                return dict(value)
        elif isinstance(option, type) and _is_instance(option, value):
            return option(value)
    raise UserError(f"{name} has the wrong type", where, type_in_words(hint), f"{value!r} ({type(value).__name__})")


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union type except None; any other type is its only member."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(o for o in typing.get_args(hint) if o is not type(None))
    return (hint,)


def _is_instance(kind: type, value: Any) -> bool:
    """Whether a TOML value is a ``kind``. An integer is accepted as a float; a boolean is not accepted as a number."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def type_in_words(hint: Any) -> str:
    """A type as error messages and the documentation show it, as in "'auto', or a list of numbers"."""
    singular = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
    plural = {str: "strings", int: "integers", float: "numbers"}

    def words(option: Any) -> str:
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is Literal:
            return " or ".join(repr(a) for a in args)
        if origin is tuple:
            return f"a list of {plural[args[0]]}"
        if origin is dict:
            return "a table of strings, numbers and booleans"
        return singular.get(option, str(option))

    return ", or ".join(words(option) for option in union_members(hint))
