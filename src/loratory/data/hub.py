"""Reads datasets from the hub with the library ``datasets``."""

from collections.abc import Iterator
from typing import Any

import datasets

from loratory.data.remarks import Record
from loratory.errors import UserError

HUB = "hub:"


def hub_records(name: str, split: str) -> Iterator[Record]:
    """The records of a split of "hub:owner/name"; class labels stored as numbers are replaced by their names.

    Raises UserError.
    """
    try:
        table = datasets.load_dataset(name.removeprefix(HUB), split=split)
    except Exception as error:  # many types: no network, unknown name, gated, code in the dataset
        raise UserError(
            "The hub dataset cannot be loaded",
            name,
            expected=f"a public dataset with a {split!r} split, and a network connection or a cached copy",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name and the network, or save the data as a file and give its path",
        ) from error
    return _records_of(table, name)


def _records_of(table: Any, name: str) -> Iterator[Record]:
    named = {key: f for key, f in table.features.items() if isinstance(f, datasets.ClassLabel)}
    for i, record in enumerate(table, 1):
        numbers = {key: record[key] for key in named if record[key] is not None}
        labels = {key: named[key].int2str(value) if value >= 0 else None for key, value in numbers.items()}
        yield {**record, **labels}, f"{name}, row {i}"
