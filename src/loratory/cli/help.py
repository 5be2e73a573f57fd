"""``--help`` and ``--help-all``: the dozen flags that people use, or every flag, with their meanings and defaults."""

import ast
import dataclasses
import inspect
import itertools
import shutil
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import tyro

from loratory.cli.verb import Verb
from loratory.config import Config
from loratory.schema import union_members

FLAG_WIDTH = 34
LONGEST_LINE = 100
POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag, or one positional argument."""

    name: str
    """As in "train.learning_rate"."""
    type: Any
    default: Any
    meaning: str
    positional: bool

    @property
    def text(self) -> str:
        """As it is typed, as in "--train.learning-rate X"."""
        return f"--{self.name.replace('_', '-')} {metavar(self.type)}".rstrip()


def verb_help(verb: Verb, everything: bool) -> str:
    """The help of a verb: description, examples and flags."""
    own = list(flags_of(verb.flags))
    arguments = [flag for flag in own if flag.positional]
    parts = [f"usage: loratory {verb.name} {verb.usage} [FLAGS]", inspect.cleandoc(verb.flags.__doc__ or "")]
    parts.append("\n".join(["Examples:" if len(verb.examples) > 1 else "Example:", *(f"  {e}" for e in verb.examples)]))
    if arguments:
        parts.append(_table("Arguments", [(flag.name.upper(), flag.meaning) for flag in arguments]))
    parts.append(_table("Flags", [_row(flag) for flag in own if flag not in arguments]))
    if verb.common is not None:
        parts += _settings(verb, everything)
    return "\n\n".join(_filled(part) for part in parts) + "\n"


def _settings(verb: Verb, everything: bool) -> Iterator[str]:
    if not everything:
        settings = {flag.name: flag for flags in all_settings().values() for flag in flags}
        yield _table("Common settings", [_row(settings[name]) for name in verb.common or ()])
        yield f"loratory {verb.name} --help-all lists every setting of a task file."
        return
    for section, flags in all_settings().items():
        yield _table(f"[{section}]" if section else "Settings", [_row(flag) for flag in flags])


def all_settings() -> dict[str, list[Flag]]:
    """The settings of a task file by section; those above the sections under the empty name."""
    sections: dict[str, list[Flag]] = {"": []}
    for flag in flags_of(Config):
        if dataclasses.is_dataclass(flag.type):
            inner = flags_of(typing.cast(type, flag.type))
            sections[flag.name] = [dataclasses.replace(f, name=f"{flag.name}.{f.name}") for f in inner]
        else:
            sections[""].append(flag)
    return sections


def flags_of(cls: type) -> Iterator[Flag]:
    """The fields of a dataclass that are flags by themselves."""
    meanings, hints = field_docstrings(cls), typing.get_type_hints(cls)
    annotated = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        if hints[field.name] is not Config:
            default = field.default
            if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            positional = POSITIONAL in getattr(annotated[field.name], "__metadata__", ())
            yield Flag(field.name, hints[field.name], default, meanings.get(field.name, ""), positional)


def field_docstrings(cls: type) -> dict[str, str]:
    """The string that follows each field of a dataclass, inherited fields included."""
    found: dict[str, str] = {}
    for ancestor in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        body = ast.parse(inspect.getsource(ancestor)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in itertools.pairwise(body.body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(str(text.value.value).split())  # type: ignore[attr-defined]
    return found


def metavar(hint: Any) -> str:
    """What stands for a flag's value: ``N``, ``{lora,full}``, ``TEXT ...``; empty for a switch."""
    texts = [_metavar(option) for option in union_members(hint)]
    choices = [text.strip("{}") for text in texts if text.startswith("{")]
    others = [text for text in texts if not text.startswith("{")]
    return "|".join(dict.fromkeys([*(["{" + ",".join(choices) + "}"] if choices else []), *others]))


def _metavar(option: Any) -> str:
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if origin is Literal:
        return "{" + ",".join(arguments) + "}"
    if origin is tuple:
        return f"{_metavar(arguments[0])} ..."
    if origin is dict:
        return "NAME VALUE ..."
    return "" if option is bool else METAVARS[option]


def _row(flag: Flag) -> tuple[str, str]:
    unset = flag.default is None or flag.default is False or flag.default in ("", (), {})
    default = "" if unset else f" (default: {flag.default})"
    return flag.text, f"{flag.meaning}{default}"


def _table(heading: str, rows: list[tuple[str, str]]) -> str:
    width = line_width() - FLAG_WIDTH - 2
    lines = [f"{heading}:"]
    for name, meaning in rows:
        wrapped = textwrap.wrap(meaning, width) or [""]
        if len(name) >= FLAG_WIDTH:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{FLAG_WIDTH}}{wrapped.pop(0)}".rstrip())
        lines += [" " * (FLAG_WIDTH + 2) + line for line in wrapped]
    return "\n".join(lines)


def line_width() -> int:
    return max(FLAG_WIDTH + 30, min(LONGEST_LINE, shutil.get_terminal_size().columns))


def _filled(text: str) -> str:
    """Prose wrapped to the terminal; lines of tables and usage stay."""
    if "\n  " in text or text.startswith("usage:"):
        return text
    return "\n\n".join(textwrap.fill(paragraph.replace("\n", " "), line_width()) for paragraph in text.split("\n\n"))
