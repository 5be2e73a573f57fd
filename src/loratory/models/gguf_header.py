"""Reads the header of a GGUF file, with every size checked against the file before anything is allocated for it.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Other libraries read a file only
after this module has accepted it.
"""

import itertools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from loratory.errors import UserError
from loratory.models.untrusted import check_regular
from loratory.storage import check_no_pointer

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_KEYS, MAX_TENSORS, MAX_DIMENSIONS, MAX_ALIGNMENT = 1 << 16, 1 << 16, 4, 1 << 20
MAX_ITEMS = 1 << 24  # of an array: sixteen million tokens or merges
MAX_STRING = 16 << 20  # bytes
STRING, ARRAY = 8, 9
# Formats of Python's struct for the numbers among the types of values.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    shape: tuple[int, ...]
    """In PyTorch's order, the slowest dimension first."""
    type: str
    """The type of its numbers, as in "Q4_1"."""
    start: int
    """Where its bytes begin in the file."""
    end: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file."""

    architecture: str
    values: Mapping[str, Any]
    """Its metadata: numbers, texts, and lists of them."""
    tensors: Mapping[str, TensorInfo]

    @property
    def numbers(self) -> int:
        """How many numbers the tensors contain."""
        return sum(tensor.numbers for tensor in self.tensors.values())

    @property
    def quantization(self) -> str:
        """The kind of quantization, as in "Q4_1" and "Q4_K_M": what the file says, else the type of most numbers."""
        try:
            return LlamaFileType(self.values.get("general.file_type")).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            counts: dict[str, int] = {}
            for tensor in self.tensors.values():
                counts[tensor.type] = counts.get(tensor.type, 0) + tensor.numbers
            return max(counts, key=lambda name: counts[name])

    def of_architecture(self, key: str) -> Any:
        """The value that the file has under its architecture, as in "llama.block_count"; None if it has none."""
        return self.values.get(f"{self.architecture}.{key}")


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file.

    Raises UserError if it is not a GGUF file, has a version or byte order that cannot be read, or is damaged or
    incomplete.
    """
    check_regular(path)
    check_no_pointer(path)
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8 or start[:4] != MAGIC:
            expected, found = "a file that begins with GGUF", repr(start[:4])
            raise UserError(
                "This is not a GGUF file", str(path), expected, found, "download it again, or use another file"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content).header()


class _Reader:
    """Reads the values of a header in turn. Nothing is read beyond the file, and no count is believed that the rest of
    the file could not hold."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content, self.size, self.position = path, content, len(content), len(MAGIC)

    def header(self) -> GgufHeader:
        self._check_version()
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS or not tensors:
            raise self._damaged(f"{tensors} tensors and {keys} values")
        values: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            if key in values:
                raise self._damaged(f"two values named {key[:80]!r}")
            values[key] = self._value(self._number("I"))
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._damaged("no general.architecture")
        if values.get("split.count", 1) not in (0, 1):
            fix = "join its parts: llama-gguf-split --merge FIRST-PART WHOLE"
            raise UserError(
                "This file is one part of a GGUF model", str(self.path), found=f"{values['split.count']} parts", fix=fix
            )
        return GgufHeader(architecture, values, self._tensors(tensors, values.get("general.alignment", 32)))

    def _check_version(self) -> None:
        version = self._number("I")
        if version in VERSIONS:
            return
        if not version & 0xFFFF:
            fix = "use a file for little-endian machines, which is the usual kind"
            raise UserError("The GGUF file is for big-endian machines", str(self.path), fix=fix)
        expected, found, fix = "version 2 or 3", f"version {version}", "use a newer file of the model"
        raise UserError("This version of GGUF cannot be read", str(self.path), expected, found, fix)

    def _tensors(self, count: int, alignment: Any) -> dict[str, TensorInfo]:
        if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._damaged(f"an alignment of {str(alignment)[:40]}")
        listed: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(count):
            name = self._string()
            if name in listed:
                raise self._damaged(f"two tensors named {name[:80]!r}")
            listed[name] = self._tensor(name, alignment)
        data = -(-self.position // alignment) * alignment
        tensors = {
            name: TensorInfo(*info[:2], data + info[2], data + info[2] + info[3]) for name, info in listed.items()
        }
        ordered = sorted(tensors.items(), key=lambda item: item[1].start)
        for (_, before), (name, after) in itertools.pairwise(ordered):
            if after.start < before.end:
                raise self._damaged(f"the tensor {name[:80]!r} overlaps another one")
        if (end := ordered[-1][1].end) > self.size:
            expected, found = f"{end} bytes", f"{self.size} bytes"
            raise UserError("The GGUF file is incomplete", str(self.path), expected, found, "download it again")
        return tensors

    def _tensor(self, name: str, alignment: int) -> tuple[tuple[int, ...], str, int, int]:
        """Shape, type, offset in the data, and number of bytes of one tensor."""
        dimensions = self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"the tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        kind, offset = self._number("I"), self._number("Q")
        try:
            quantization = GGMLQuantizationType(kind)
            block, size = GGML_QUANT_SIZES[quantization]
        except (ValueError, KeyError):
            raise self._damaged(f"the tensor {name[:80]!r} has the unknown type {kind}") from None
        numbers = math.prod(shape)
        if not numbers or shape[0] % block or offset % alignment:
            raise self._damaged(f"the tensor {name[:80]!r} has the shape {shape} and the offset {offset}")
        return shape[::-1], quantization.name, offset, numbers // block * size

    def _value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise self._damaged(f"a value of the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner not in NUMBERS and inner != STRING:
            raise self._damaged(f"a list of values of the type {inner}")
        smallest = struct.calcsize(f"<{NUMBERS.get(inner, 'Q')}")
        if count > min(MAX_ITEMS, (self.size - self.position) // smallest):
            raise self._damaged(f"a list of {count} values")
        if inner == STRING:
            return [self._string() for _ in range(count)]
        return list(struct.unpack(f"<{count}{NUMBERS[inner]}", self._take(count * smallest)))

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def _string(self) -> str:
        length = self._number("Q")
        if length > MAX_STRING:
            raise self._damaged(f"a text of {length} bytes")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"a text that is not UTF-8, at byte {self.position - length}") from None

    def _take(self, count: int) -> bytes:
        if count > self.size - self.position:
            expected, found = f"more than {self.size} bytes", f"{self.size} bytes"
            raise UserError("The GGUF file is incomplete", str(self.path), expected, found, "download it again")
        self.position += count
        return self.content[self.position - count : self.position]

    def _damaged(self, found: str) -> UserError:
        return UserError("The header of the GGUF file is damaged", str(self.path), found=found, fix="download it again")
