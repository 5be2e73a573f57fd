"""Reads titles and abstracts of papers, and no other field, so that no label can reach the model."""

import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paper:
    title: str
    abstract: str

    @property
    def text(self) -> str:
        """The paper as plain text."""
        return f"{self.title}\n\n{self.abstract}"


def read_papers(files: Iterable[Path]) -> Iterator[Paper]:
    """Yields the papers of jsonl or jsonl.xz files in order, with whitespace collapsed."""
    for path in files:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                yield Paper(" ".join(record["title"].split()), " ".join(record["abstract"].split()))
