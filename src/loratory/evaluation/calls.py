"""Calls between the process that runs a program's tests and the process that runs the program.

Plain data (numbers, texts, bytes, lists, tuples, sets, dicts and a few types of the standard library) is sent by value.
Lists and other containers that a call changes are changed on the caller's side too. Any other object stays in its own
process, and the other one gets a ``Remote`` that stands for it. Messages are JSON, so reading one runs no code.

The sandbox runs this file outside the package, so it imports only the standard library.
"""

import builtins
import datetime
import decimal
import fractions
import json
import operator
import os
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_MESSAGE = 16 << 20  # bytes
PLAIN = (type(None), bool, float, str)
# Subclasses stand after their bases.
CONTAINERS = {c.__name__: c for c in (list, dict, set, bytearray, deque, Counter, OrderedDict, defaultdict)}
# Immutable types, and how to take a value apart into the arguments of its type.
PARTS: dict[type, Callable[[Any], tuple]] = {
    tuple: tuple, frozenset: tuple, complex: lambda v: (v.real, v.imag),
    range: lambda v: (v.start, v.stop, v.step), slice: lambda v: (v.start, v.stop, v.step),
    decimal.Decimal: lambda v: (str(v),), fractions.Fraction: lambda v: (v.numerator, v.denominator),
    datetime.date: lambda v: (v.year, v.month, v.day),
    datetime.datetime: lambda v: (*v.timetuple()[:6], v.microsecond),
    datetime.timedelta: lambda v: (v.days, v.seconds, v.microseconds),
}  # fmt: skip
TYPES = {kind.__name__: kind for kind in PARTS}
# Built-in functions and types that both sides have; none of them runs code that it is given as text.
SHARED = {
    name: value for name, value in vars(builtins).items()
    if isinstance(value, type) or name in (
        "abs", "all", "any", "bin", "callable", "chr", "divmod", "format", "hash", "hex", "isinstance", "issubclass",
        "len", "max", "min", "oct", "ord", "pow", "repr", "round", "sorted", "sum",
    )
}  # fmt: skip
# What a process can ask about an object of the other one.
OPERATIONS: dict[str, Callable] = {
    "call": lambda f, args, kwargs: f(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "len": len, "iter": iter, "next": next, "bool": bool, "str": str,
    "repr": repr, "getitem": operator.getitem, "setitem": operator.setitem, "contains": operator.contains,
    "eq": operator.eq, "lt": operator.lt,
}  # fmt: skip


class Ended(BaseException):
    """The other process has ended, or sent something that is not a message."""


class Remote:
    """Stands for an object of the other process."""

    def __init__(self, peer: "Peer", number: int):
        object.__setattr__(self, "_ask", lambda name, *arguments: peer.ask(name, number, *arguments))
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __contains__(self, item: Any) -> bool:
        return self._ask("contains", item) is True

    def __len__(self) -> int:
        return self._ask("len")

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __bool__(self) -> bool:
        return self._ask("bool") is True

    def __str__(self) -> str:
        return self._ask("str")

    def __repr__(self) -> str:
        return self._ask("repr")

    def __eq__(self, other: object) -> bool:
        # An object of a program equals no plain value, whatever it claims.
        return self is other or (isinstance(other, Remote) and self._ask("eq", other) is True)

    def __lt__(self, other: object) -> bool:
        return self._ask("lt", other) is True

    def __hash__(self) -> int:
        return hash(self._number)


class Containers:
    """The containers of a message, each once."""

    def __init__(self, found: Sequence[Any] = ()):
        self.found = list(found)
        self.positions = {id(value): i for i, value in enumerate(self.found)}

    def position(self, value: Any) -> int:
        """The position of a container, which is added if it is new."""
        position = self.positions.setdefault(id(value), len(self.found))
        if position == len(self.found):
            self.found.append(value)
        return position


class Peer:
    """One end of a connection: asks the other process, and answers what it asks meanwhile."""

    def __init__(self, reading: int, writing: int, operations: Mapping[str, Callable]):
        self.reading, self.writing, self.operations = os.fdopen(reading, "rb", closefd=False), writing, operations
        self.own: list[Any] = []  # objects that the other process refers to by their position
        self.numbers: dict[int, int] = {}
        self.remotes: dict[int, Remote] = {}
        self.errors: dict[tuple[str, str], type] = {}

    # ---- messages ----

    def send(self, message: Any) -> None:
        """Raises ValueError, without sending anything, if the message is too large."""
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError("a value is too large to be sent to or from the tests")
        data = len(data).to_bytes(4, "big") + data
        while data:
            data = data[os.write(self.writing, data) :]

    def receive(self) -> Any:
        size = int.from_bytes(self.reading.read(4), "big")
        data = self.reading.read(size) if size <= MAX_MESSAGE else b""
        if not data or len(data) < size:
            raise Ended
        return json.loads(data)

    def ask(self, name: str, *arguments: Any) -> Any:
        """The other process's result of an operation. Raises what the operation raised there."""
        sent = Containers()
        self.send(["ask", name, self.encode(list(arguments), sent), self.contents(sent)])
        while True:
            kind, *rest = self.receive()
            if kind == "ask":
                self.answer(*rest)
                continue
            value, table = rest
            result = self.decode(value, self.filled(table, sent.found))
            if kind == "raise":
                raise result
            return result

    def answer(self, name: str, value: Any, table: list) -> None:
        """Runs an operation for the other process and sends its result, or the exception that it raised."""
        try:
            received = Containers(self.filled(table, []))
            first, *others = self.decode(value, received.found)
            subject = self.own[first] if name in OPERATIONS else first
            result = self.operations[name](subject, *others)
            message = ["return", self.encode(result, received), self.contents(received)]
            self.send(message)
        except BaseException as error:
            self.send(["raise", ["raised", type(error).__name__, base_of(type(error)), str(error)[:1000]], []])

    def serve(self) -> None:
        """Answers until the other process ends."""
        while True:
            _, *rest = self.receive()
            self.answer(*rest)

    # ---- values ----

    def encode(self, value: Any, sent: Containers) -> Any:
        """A value as JSON. Containers are added to ``sent`` and written as their position there."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind is Remote:
            return ["yours", value._number]
        if isinstance(value, int):
            return int(value) if abs(int(value)) < 1 << 53 else ["int", hex(int(value))]
        if isinstance(value, float | str):  # a subclass
            return (float if isinstance(value, float) else str).__getnewargs__(value)[0]  # type: ignore[attr-defined]
        if isinstance(value, bytes):
            return ["bytes", value.hex()]
        if isinstance(value, tuple(CONTAINERS.values())):
            return ["container", sent.position(value)]
        if isinstance(value, tuple):  # also a named tuple
            kind = tuple
        if kind in PARTS and getattr(value, "tzinfo", None) is None:
            return [kind.__name__, [self.encode(part, sent) for part in PARTS[kind](value)]]
        name = getattr(value, "__name__", "")
        if isinstance(name, str) and SHARED.get(name) is value:
            return ["shared", name]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["error", name, base_of(value)]
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.own)
            self.own.append(value)
        return ["mine", self.numbers[id(value)]]

    def contents(self, sent: Containers) -> list:
        """The encoded contents of all containers of a message; encoding them may find more."""
        table = []
        for container in sent.found:  # grows meanwhile
            items = list(container.items()) if isinstance(container, dict) else list(container)
            kind = next(name for name, c in reversed(CONTAINERS.items()) if isinstance(container, c))
            table.append([kind, [self.encode(item, sent) for item in items]])
        return table

    def filled(self, table: list, known: Sequence[Any]) -> list[Any]:
        """The containers of a message. The first are ``known`` and get the contents that they have now."""
        found = [*known, *(CONTAINERS[kind]() for kind, _ in table[len(known) :])]
        for container, (_, items) in zip(found, table, strict=False):
            values = [self.decode(item, found) for item in items]
            if isinstance(container, list | bytearray):
                container[:] = values
                continue
            container.clear()
            if isinstance(container, deque):
                container.extend(values)
            elif isinstance(container, dict):
                dict.update(container, values)  # a Counter's own method would add
            else:
                container.update(values)
        return found

    def decode(self, value: Any, containers: list[Any]) -> Any:
        if not isinstance(value, list):
            return value
        match value:
            case ["container", position]:
                return containers[position]
            case [name, list(parts)] if name in TYPES:
                values = [self.decode(part, containers) for part in parts]
                return TYPES[name](values) if name in ("tuple", "frozenset") else TYPES[name](*values)
            case ["int", text]:
                return int(text, 16)
            case ["bytes", text]:
                return bytes.fromhex(text)
            case ["shared", name]:
                return SHARED[name]
            case ["error", name, base]:
                return self.error_type(name, base)
            case ["raised", name, base, text]:
                return self.error_type(name, base)(text)
            case ["yours", number]:
                return self.own[number]
            case ["mine", number]:
                return self.remotes.setdefault(number, Remote(self, number))
        raise Ended

    def error_type(self, name: str, base: str) -> type:
        """The built-in exception, or a class of this name derived from it."""
        kind = SHARED[base]
        if not issubclass(kind, BaseException):
            raise Ended
        return kind if name == base else self.errors.setdefault((name, base), type(name, (kind,), {}))


def base_of(kind: type) -> str:
    """The closest built-in class of an exception's class."""
    return next(c.__name__ for c in kind.__mro__ if SHARED.get(c.__name__) is c)
