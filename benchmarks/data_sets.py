"""Texts with labels, for sweeps and comparisons: papers, titles, first sentences, questions, tickets.

Each is drawn by seed from its source, with as many examples of each label as possible; test rows are never training
rows. Standard library only.
"""

import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import read_lines

TICKETS = Path(__file__).parents[1] / "examples" / "tickets" / "tickets.jsonl"
# Intents whose questions are easily confused with one another.
INTENTS = (
    "card_arrival", "card_delivery_estimate", "card_not_working", "card_payment_fee_charged",
    "card_payment_not_recognised", "card_payment_wrong_exchange_rate", "cash_withdrawal_charge", "exchange_rate",
    "lost_or_stolen_card", "pending_card_payment", "Refund_not_showing_up", "reverted_card_payment?",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows of a data set from which training examples are drawn, and those that are only for tests."""

    pool: tuple[dict[str, str], ...]
    test: tuple[dict[str, str], ...]


def papers(data: Path) -> Rows:
    """Title and abstract of a real arXiv paper -> one of ten categories; 1,000 for tests."""
    return _papers(data, lambda paper: f"{paper['title']}\n\n{paper['abstract'].strip()}", 1000)


def titles(data: Path) -> Rows:
    """Title of a real arXiv paper -> one of ten categories; 1,000 for tests."""
    return _papers(data, lambda paper: paper["title"], 1000)


def sentences(data: Path) -> Rows:
    """First sentence of the abstract of a real arXiv paper -> one of ten categories; 1,000 for tests."""
    return _papers(data, lambda paper: re.split(r"(?<=[.?!]) ", paper["abstract"].strip(), maxsplit=1)[0], 1000)


def questions(data: Path) -> Rows:
    """A bank customer's question -> one of twelve intents of banking77; its own test set, 480 questions."""
    return Rows(*(tuple(row for row in _bank(data, name) if row["label"] in INTENTS) for name in ("train", "test")))


def banking77(data: Path) -> Rows:
    """A bank customer's question -> one of 77 intents; 1,001 questions of its own test set."""
    return Rows(tuple(_bank(data, "train")), tuple(balanced(_bank(data, "test"), 1001, "test")))


def tickets(data: Path) -> Rows:
    """A support ticket, written for this project -> one of four departments; 300 for tests."""
    return _held_out(read_lines(TICKETS), 300)


DATA_SETS = {
    "papers": papers,
    "titles": titles,
    "sentences": sentences,
    "questions": questions,
    "banking77": banking77,
    "tickets": tickets,
}


def _bank(data: Path, name: str) -> list[dict[str, str]]:
    with (data / "banking77" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]


def _papers(data: Path, text_of, held_out: int) -> Rows:
    papers = read_lines(data / "arxiv" / "train.jsonl")
    rows = [{"text": text_of(paper), "label": paper["category"]} for paper in papers]
    return _held_out(rows, held_out)


def _held_out(rows: Sequence[dict[str, str]], count: int) -> Rows:
    """``count`` rows for tests, the same for every draw; a text that is in both parts stays in the test set only."""
    test = balanced(rows, count, "test")
    texts = {row["text"] for row in test}
    return Rows(tuple(row for row in rows if row["text"] not in texts), tuple(test))


def balanced(rows: Sequence[dict[str, str]], count: int, seed: str) -> list[dict[str, str]]:
    """``count`` rows drawn by seed, taking the labels in turn."""
    rng = random.Random(seed)
    groups: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rng.sample(list(rows), len(rows)):
        groups[row["label"]].append(row)
    drawn: list[dict[str, str]] = []
    while len(drawn) < count and any(groups.values()):
        drawn += [group.pop() for group in groups.values() if group]
    rng.shuffle(drawn)
    return drawn[:count]


def write(folder: Path, name: str, size: int, seed: int, data: Path) -> tuple[Path, Path]:
    """Writes ``size`` training rows of a data set, drawn by seed, and its test rows. Returns both files."""
    rows = DATA_SETS[name](data)
    files = folder / f"{name}-{size}-{seed}-train.jsonl", folder / f"{name}-test.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    for file, part in zip(files, (balanced(rows.pool, size, f"{name} {seed}"), rows.test), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return files
