"""Lists that stand in the cells of csv files as Python prints them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from loratory.data import load_split, question_findings, read_table
from loratory.data.literals import parse_list
from loratory.errors import UserError
from loratory.settings import DataConfig, PromptConfig

TURNS = [{"role": "user", "content": 'it\'s "so"\n', "x": None}, {"role": "assistant", "content": "yes: \\d é"}]


def write(path: Path, cells: list[str]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["messages"], *([cell] for cell in cells)])
    return str(path)


def test_conversations_as_python_prints_them_are_those_of_json_and_this_is_said(tmp_path):
    names = [write(tmp_path / f"{f.__name__}.csv", [f(TURNS)] * 9) for f in (json.dumps, repr)]
    parts = [load_split(DataConfig((name,)), PromptConfig(), 0, task="dialogue") for name in names]
    assert [e.messages for e in parts[0].train] == [e.messages for e in parts[1].train]
    assert [e.answers for e in parts[0].train] == [e.answers for e in parts[1].train]
    assert "python_literals" not in {f.name for f in parts[0].findings}
    [finding] = [f for f in parts[1].findings if f.name == "python_literals"]
    assert finding.count == 9 and "9 of 9 conversations are written as Python literals" in finding.message


@pytest.mark.parametrize(
    "text",
    ["[1, 2", "[print('x')]", "[{1: 2}]", "[(1, 2)]", "[{'a'}]", "[b'x']", "[..., 1j]", "[" * 5000,
     "[" + "-" * 90_000 + "1]",
     "[x for x in 'ab']", "['a\0']"],
)  # fmt: skip
def test_what_is_neither_json_nor_plain_is_malformed(text: str):
    with pytest.raises(UserError, match="Malformed JSON"):
        parse_list(text, "a.csv:2")


@pytest.mark.parametrize("value", [[1, 2.5, True, None, "a'b"], [], [{"a": [{"b": "c"}]}]])
def test_plain_values_are_read_back(value: Any):
    assert parse_list(repr(value), "") == (value, repr(value) != json.dumps(value))


def test_questions_say_what_is_not_used_once(tmp_path):
    rows = [{"messages": [{**TURNS[0], "id": i}], "source": "web"} for i in range(5)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {f.name: f for f in question_findings(read_table(str(path)).rows)}
    assert set(found) == {"unused_keys", "unused_columns"}
    assert "id (5)" in found["unused_keys"].message and "source (5)" in found["unused_columns"].message
