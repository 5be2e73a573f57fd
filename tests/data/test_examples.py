"""Rows, prompts, labels and splits: cells stay text, and every error names a file and a line."""

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loratory.data.answers import answer_of
from loratory.data.examples import Example, Message, with_shots
from loratory.data.prompts import default_user_prompt, fill, placeholders, prompt_writer, records_to_examples
from loratory.data.rows import Row, read_rows
from loratory.data.splits import Split, draw_few_shot, load_split, stratified_sample, stratified_split
from loratory.errors import UserError
from loratory.settings import DataConfig, PromptConfig

quick = settings(derandomize=True, deadline=None, max_examples=60)


def file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def values_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [dict(row.values) for row in rows]


def lines_of(rows: Sequence[Row]) -> list[int]:
    return [int(row.source.rpartition(":")[2]) for row in rows]


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("CSV", ",")])
def test_cells_of_a_csv_file_stay_text(tmp_path, suffix: str, delimiter: str):
    cells = ["01", "NA", "null", "", " x ", "1e5", "TRUE", "2024-01-02"]
    content = "\n".join(delimiter.join(row) for row in (["text", "label"], *([c, "nan"] for c in cells)))
    rows = read_rows(file(tmp_path, f"a.{suffix}", content))
    assert values_of(rows) == [{"text": c, "label": "nan"} for c in cells]


def test_line_numbers_of_a_csv_file_count_lines_not_rows(tmp_path):
    content = '\ntext,label\n"one\ntwo",a\n\nthree,b\r\n"fo""ur\r\n\r\nfive",c\nsix,d\n'
    rows = read_rows(file(tmp_path, "a.csv", content))
    assert [row.values["text"] for row in rows] == ["one\ntwo", "three", 'fo"ur\r\n\r\nfive', "six"]
    assert lines_of(rows) == [3, 6, 7, 10]
    assert rows[0].source == f"{tmp_path / 'a.csv'}:3"


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.text('ab,"\n')))
)
@quick
def test_a_csv_file_written_by_the_csv_module_is_read_back(tmp_path_factory, pairs: list[tuple[str, str]]):
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("text", "label"), *pairs, ("last", "one")])
    path = file(tmp_path_factory.mktemp("csv"), "a.csv", buffer.getvalue())
    pairs = [pair for pair in pairs if any(cell.strip() for cell in pair)]  # rows without any value are left out
    assert [(r.values["text"], r.values["label"]) for r in read_rows(path)] == [*pairs, ("last", "one")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nü,b\n"),
        ("a.tsv", "text\tlabel\nü\tb\n"),
        ("a.json", '[{"text": "ü", "label": "b"}]'),
        ("a.jsonl", '{"text": "ü", "label": "b"}\n\n'),
    ],
)
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path, name: str, content: str):
    for mark in (b"", b"\xef\xbb\xbf"):
        rows = read_rows(file(tmp_path, name, mark + content.encode()))
        assert values_of(rows) == [{"text": "ü", "label": "b"}]


def test_line_numbers_of_json_lines_include_empty_lines(tmp_path):
    rows = read_rows(file(tmp_path, "a.jsonl", '{"a": 1}\n\n{"a": "x\\ny\u2028"}\r\n{"a": null}'))
    assert values_of(rows) == [{"a": 1}, {"a": "x\ny\u2028"}, {"a": None}]
    assert lines_of(rows) == [1, 3, 4]


def test_a_parquet_file_gives_rows_and_the_names_of_class_labels(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    rows = read_rows(str(tmp_path / "a.parquet"))
    expected = [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}, {"text": "c", "label": None}]
    assert values_of(rows) == expected
    assert rows[1].source == f"{tmp_path / 'a.parquet'}, row 2"


@pytest.mark.parametrize(
    ("name", "content", "what", "line"),
    [
        ("a.csv", 'text,label\n"a\nb",c\nd,e,f\n', "wrong number of columns", ":4"),
        ("a.csv", "text,text\na,b\n", "same name", ":1"),
        ("a.csv", 'text,label\n"a, b",b\n"c,d\n', "Malformed row", ":3"),
        ("a.csv", 'text,label\n"a, a"b,c\n', "Malformed row", ":2"),
        ("a.csv", "text,label\n", "no rows", ""),
        ("a.csv", "", "no rows", ""),
        ("a.jsonl", '{"a": 1}\n{"a": 2\n', "Malformed JSON", ":2"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "must be a JSON object", ":3"),
        ("a.jsonl", "\n\n", "no rows", ""),
        ("a.json", '"a"', "list of records", ""),
        ("a.json", '[{"a": 1}, 3]', "must be a JSON object", ", record 2"),
        ("a.json", "[", "Malformed JSON", ":1"),
        ("a.json", "[" * 100_000, "Malformed JSON", ":1"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}\n]', "Malformed JSON", ":3"),
        ("a.json", "[]", "no rows", ""),
        ("a.parquet", "not parquet", "parquet file cannot be read", ""),
        ("a.doc", "text", "Unknown type", ""),
        ("a", "text", "Unknown type", ""),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, name: str, content: str, what: str, line: str):
    with pytest.raises(UserError, match=what) as caught:
        read_rows(file(tmp_path, name, content))
    assert caught.value.where == f"{tmp_path / name}{line}"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_missing_file_and_a_folder_are_named(tmp_path, name: str):
    (tmp_path / name).mkdir()
    for path, what in ((tmp_path / name, "is a folder"), (tmp_path / "none" / name, "not found")):
        with pytest.raises(UserError, match=what) as caught:
            read_rows(str(path))
        assert caught.value.where == str(path)


@pytest.mark.parametrize("line", [2, 30, 3000])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_that_is_not_utf_8_is_named_with_its_line(tmp_path, name: str, line: int):
    good, bad = (
        ("ein süßer Text,b".encode(), b"caf\xe9,b")
        if name == "a.csv"
        else ('{"a": "süß"}'.encode(), b'{"a": "caf\xe9"}')
    )
    lines = [good] * 4000
    lines[line - 1] = bad
    with pytest.raises(UserError, match="not UTF-8") as caught:
        read_rows(file(tmp_path, name, b"\n".join(lines)))
    assert caught.value.where == f"{tmp_path / name}:{line}"


@given(
    st.binary(max_size=80) | st.text('ab,"\n{}[]:1\\ü').map(str.encode),
    st.sampled_from(["csv", "tsv", "json", "jsonl"]),
)
@example(b'[{"a": ' + b"1" * 5000 + b"}]", "json")
@example(b'{"a": ' + b"1" * 5000 + b"}", "jsonl")
@example(b"a,b\n\0,c\n", "csv")
@quick
def test_any_bytes_give_rows_or_an_error_that_names_the_file(tmp_path_factory, content: bytes, suffix: str):
    path = file(tmp_path_factory.mktemp("any"), f"a.{suffix}", content)
    try:
        assert all(row.source.startswith(path) for row in read_rows(path))
    except UserError as error:
        assert str(error.where).startswith(path)


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"), [(" yes\n", "yes"), ("01", "01"), (1, "1"), (True, "true"), (0, "0"), (["a"], '["a"]')]
)
def test_an_answer_is_text_without_surrounding_white_space(value: Any, expected: str):
    assert answer_of(Row({"label": value}, "f:1"), "label") == expected


@pytest.mark.parametrize("value", ["", "  \n", None])
def test_an_empty_answer_is_named_with_file_and_line(value: Any):
    with pytest.raises(UserError, match="'label' is empty") as caught:
        answer_of(Row({"label": value}, "a.csv:7"), "label")
    assert caught.value.where == "a.csv:7"


def test_a_missing_answer_column_suggests_the_most_similar_one():
    with pytest.raises(UserError, match="'labl' is missing") as caught:
        answer_of(Row({"text": "a", "label": "b"}, "a.csv:2"), "labl")
    assert (caught.value.where, caught.value.fix) == ("a.csv:2", "did you mean 'label'?")


# ---- splits ----------------------------------------------------------------------------------------------------------

label_lists = st.lists(st.sampled_from("aaaabbcdef"), min_size=1, max_size=60)
seeds = st.integers(0, 99)


def rows_of(labels: Sequence[str]) -> list[Row]:
    return [Row({"label": label, "number": i}, f"rows:{i}") for i, label in enumerate(labels)]


def label_of(row: Row) -> str:
    return row.values["label"]


@given(label_lists, st.integers(0, 70), seeds)
@quick
def test_a_limit_is_stratified_by_label(labels: list[str], count: int, seed: int):
    rows = rows_of(labels)
    chosen = stratified_sample(rows, label_of, count, seed, "test")
    assert len(chosen) == min(count, len(rows))
    assert [r.source for r in chosen] == [r.source for r in rows if any(r is c for c in chosen)]
    counts = Counter(map(label_of, chosen))
    for label, size in Counter(labels).items():
        assert abs(counts[label] - size * len(chosen) / len(labels)) < 1
    again = stratified_sample(rows_of(labels), label_of, count, seed, "test")
    assert [r.source for r in again] == [r.source for r in chosen]


@given(label_lists, st.floats(0.01, 0.9), seeds)
@quick
def test_split_off_partitions_the_rows_and_leaves_every_label_in_train(labels: list[str], share: float, seed: int):
    rows = rows_of(labels)
    available = len(labels) - len(set(labels))
    if not available:
        with pytest.raises(UserError, match="Too few rows"):
            stratified_split(rows, label_of, share, seed, "test")
        return
    rest, taken = stratified_split(rows, label_of, share, seed, "test")
    assert sorted(r.source for r in [*rest, *taken]) == sorted(r.source for r in rows)
    assert len(taken) == min(available, max(1, round(share * len(rows))))
    assert set(map(label_of, rest)) == set(labels)
    counts = Counter(map(label_of, taken))
    for label, size in Counter(labels).items():
        assert abs(counts[label] - (size - 1) * len(taken) / available) < 1
    again = stratified_split(rows_of(labels), label_of, share, seed, "test")
    assert [[r.source for r in part] for part in again] == [[r.source for r in part] for part in (rest, taken)]


def test_seed_and_purpose_change_the_sample():
    rows = rows_of("ab" * 50)
    draws = [tuple(r.source for r in stratified_sample(rows, label_of, 20, seed, purpose)) for seed, purpose in
             ((0, "test"), (1, "test"), (0, "validation"))]  # fmt: skip
    assert len(set(draws)) == 3


def test_a_limit_below_the_number_of_labels_favors_none():
    rows = rows_of("abcdefgh" * 5)
    drawn = {
        label for seed in range(40) for label in map(label_of, stratified_sample(rows, label_of, 2, seed, "limit"))
    }
    assert drawn == set("abcdefgh")


def table(folder: Path, name: str, labels: Sequence[str]) -> str:
    return file(folder, name, "text,label\n" + "".join(f"{name} {i},{x}\n" for i, x in enumerate(labels)))


def split(data: DataConfig, seed: int = 0, **prompt: Any) -> Split:
    return load_split(data, PromptConfig(**prompt), seed)


def test_the_three_sets_are_disjoint_and_each_example_has_its_source(tmp_path):
    path = table(tmp_path, "a.csv", "aabbc" * 8)
    result = split(DataConfig(train=(path,), answer="label", test_share=0.25, validation_share=0.2))
    sources = [e.source for part in (result.train, result.validation, result.test) for e in part]
    assert len(sources) == len(set(sources)) == 40
    assert (len(result.test), len(result.validation), len(result.train)) == (10, 6, 24)
    assert result.labels == ("a", "b", "c")
    for e in (*result.train, *result.validation, *result.test):
        line = int(e.source.rpartition(":")[2])
        assert (e.messages, e.answers) == ((Message("user", f"text: a.csv {line - 2}"),), ("aabbc"[(line - 2) % 5],))
        assert e.candidates == result.labels


@pytest.mark.parametrize(("rows", "validation"), [(60, 12), (600, 120), (1000, 200), (3000, 200), (10_000, 500)])
def test_the_automatic_validation_share_is_a_fifth_of_few_rows_and_less_of_many(tmp_path, rows, validation):
    train, test = table(tmp_path, "train.csv", "ab" * (rows // 2)), table(tmp_path, "test.csv", "ab")
    result = split(DataConfig(train=(train,), test=(test,), answer="label"))
    assert (len(result.validation), len(result.train)) == (validation, rows - validation)


def test_given_sets_are_used_completely_and_in_order(tmp_path):
    train, test = table(tmp_path, "train.csv", "ab" * 9), table(tmp_path, "test.csv", "abab")
    more = table(tmp_path, "more.csv", "c")
    data = DataConfig(train=(train, more), validation=(test,), test=(test,), answer="label")
    result = split(data)
    assert (
        [e.source for e in result.test]
        == [e.source for e in result.validation]
        == [f"{test}:{n}" for n in (2, 3, 4, 5)]
    )
    assert len(result.train) == 19 and result.train[-1].source == f"{more}:2"
    none = split(dataclasses.replace(data, validation=(), validation_share=0.0))
    assert none.validation == ()


def test_a_limit_below_the_number_of_labels_keeps_all_labels_as_candidates(tmp_path):
    path = table(tmp_path, "a.csv", "abcdefgh" * 5)
    data = DataConfig(train=(path,), answer="label", limit_train=3, limit_test=2, limit_validation=0)
    result = split(data)
    assert (len(result.train), len(result.validation), len(result.test)) == (3, 0, 2)
    assert result.labels == tuple("abcdefgh") == result.train[0].candidates
    unlimited = split(dataclasses.replace(data, limit_train=None, limit_test=None))
    assert set(result.test) <= set(unlimited.test) and set(result.train) <= set(unlimited.train)


def test_the_split_depends_only_on_the_seed(tmp_path):
    data = DataConfig(train=(table(tmp_path, "a.csv", "aabbc" * 8),), answer="label", limit_train=10)
    assert split(data, 3) == split(data, 3)
    assert split(data, 3).test != split(data, 4).test


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_label_missing_in_train_is_named_with_its_line(tmp_path, part: str):
    train, other = table(tmp_path, "train.csv", ["yes", "no"] * 9), table(tmp_path, "b.csv", ["yes", "noo"])
    data = DataConfig(train=(train,), answer="label")
    with pytest.raises(UserError, match="does not occur in the training data") as caught:
        split(dataclasses.replace(data, **{part: (other,)}))
    assert (caught.value.where, caught.value.found) == (f"{other}:3", "'noo'")
    assert caught.value.fix == "did you mean 'no'?"


def test_data_that_cannot_be_trained_on_is_rejected(tmp_path):
    same, few = table(tmp_path, "same.csv", "aaaaaa"), table(tmp_path, "few.csv", "ab")
    for data, what in (
        (DataConfig(train=(same,), answer="label"), "same answer"),
        (DataConfig(train=(few,), answer="label"), "Too few rows"),
        (DataConfig(train=(few,)), "No answer column is set"),
        (DataConfig(answer="label"), "No training data"),
    ):
        with pytest.raises(UserError, match=what):
            split(data)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def messages(prompt: PromptConfig, values: dict[str, Any], labels: Sequence[str] = ()) -> list[tuple[str, str]]:
    write = prompt_writer(prompt, "label", list(values), labels, "task.toml")
    return [(m.role, m.content) for m in write(Row(values, "a.csv:2"))]


def test_placeholders_are_filled_and_escaped_braces_are_literal():
    prompt = PromptConfig(system="One of: {labels}.", user='{{"title": "{title}"}} {{labels}} {{{n}}}')
    result = messages(prompt, {"title": "A", "n": 3, "label": "x"}, ["no", "yes"])
    assert result == [("system", "One of: no, yes."), ("user", '{"title": "A"} {labels} {3}')]


brace_text = st.text("ab{}!:.[]0\n ")


@given(brace_text, brace_text)
@quick
def test_values_are_not_interpreted_as_templates(a: str, b: str):
    shown = f"{a}|{b}|{a}" if (a + b).strip() else ""
    assert messages(PromptConfig(user="{a}|{b}|{a}"), {"a": a, "b": b}) == [("user", shown)]


def test_a_line_whose_placeholders_are_all_empty_is_left_out():
    prompt = PromptConfig(user="{instruction}\n\nInput: {input}\nFrom {input} to {end}\nBe brief.")
    values = {"instruction": "Add {1}", "input": "2", "end": ""}
    assert messages(prompt, values) == [("user", "Add {1}\n\nInput: 2\nFrom 2 to \nBe brief.")]
    assert messages(prompt, values | {"input": " "}) == [("user", "Add {1}\n\nBe brief.")]


template_parts = st.lists(st.tuples(st.booleans(), brace_text))


@given(template_parts)
@quick
def test_fill_replaces_names_and_nothing_else(parts: list[tuple[bool, str]]):
    pieces = [(is_name, "column" if is_name else piece) for is_name, piece in parts]
    template = "".join("{column}" if n else piece.replace("{", "{{").replace("}", "}}") for n, piece in pieces)
    assert set(placeholders(template, "here")) <= {"column"}
    assert fill(template, {"column": "{x}}"}) == "".join("{x}}" if n else piece for n, piece in pieces)


@pytest.mark.parametrize(
    "template",
    ["{a.__class__}", "{a.__class__.__mro__}", "{a[0]}", "{a!r}", "{a:>10}", "{a:{b}}", "{}", "{0}", "{", "}", "{a"],
)
def test_only_plain_placeholders_are_allowed(template: str):
    with pytest.raises(UserError) as caught:
        messages(PromptConfig(user=template), {"a": "x", "b": "y"})
    assert caught.value.where == "task.toml, prompt.user"


def test_an_unknown_placeholder_suggests_the_most_similar_column():
    with pytest.raises(UserError, match=r"\{titel\} does not match a column") as caught:
        messages(PromptConfig(system="{titel}", user="{title}"), {"title": "A", "label": "x"})
    assert caught.value.where == "task.toml, prompt.system"
    assert caught.value.fix == "did you mean 'title'?"


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_prompt_that_shows_the_answer_is_rejected(role: str):
    with pytest.raises(UserError, match="shows the answer"):
        messages(PromptConfig(**{role: "{title} {label}"}), {"title": "A", "label": "x"})


def test_a_row_without_a_column_is_named():
    write = prompt_writer(PromptConfig(user="{title}"), "label", ["title", "label"], (), "task.toml")
    with pytest.raises(UserError, match="has no column 'title'") as caught:
        write(Row({"label": "x"}, "a.jsonl:9"))
    assert caught.value.where == "a.jsonl:9"


def test_cells_that_are_not_strings_are_shown_as_json_and_none_as_empty():
    values = {"a": None, "b": ["ü", 1], "c": 1.5, "d": False, "label": "x"}
    assert messages(PromptConfig(user="{a}-{b}-{c}-{d}"), values) == [("user", '-["ü", 1]-1.5-false')]


def test_the_default_prompt_shows_every_column_except_the_answer():
    assert default_user_prompt(["title", "label", "year"], "label") == "title: {title}\nyear: {year}"
    assert messages(PromptConfig(system="Sort."), {"title": "A", "label": "x", "year": 1999}) == [
        ("system", "Sort."),
        ("user", "title: A\nyear: 1999"),
    ]


@pytest.mark.parametrize("name", ["", "Review.Text", "what?!", "a:b", "a[0]", "0", "with space", "ünï"])
def test_the_default_prompt_accepts_any_column_name_without_braces(name: str):
    # R replaces spaces with dots, and pandas writes its index with an empty name.
    assert messages(PromptConfig(), {name: "A", "label": "x"}) == [("user", f"{name}: A")]


@pytest.mark.parametrize("name", ["{x}", "a}b", "{"])
def test_the_default_prompt_shows_or_rejects_a_column_with_braces_in_its_name(name: str):
    try:
        assert messages(PromptConfig(), {name: "A", "label": "x"}) == [("user", f"{name}: A")]
    except UserError as error:
        assert error.where == "task.toml, prompt.user"


def test_the_split_contains_the_default_prompt(tmp_path):
    result = split(DataConfig(train=(table(tmp_path, "a.csv", "ab" * 9),), answer="label"), system="Sort.")
    assert result.prompt == PromptConfig(system="Sort.", user="text: {text}")
    rows = [Row({"text": "new"}, "b.csv:2"), Row({"text": "old", "label": ""}, "b.csv:3")]
    predicted = records_to_examples(rows, result.prompt, "label", result.labels)
    assert [(e.messages[-1].content, e.answers, e.candidates) for e in predicted] == [
        ("text: new", (), ("a", "b")),
        ("text: old", (), ("a", "b")),
    ]


# ---- few-shot --------------------------------------------------------------------------------------------------------


def solved(labels: Sequence[str]) -> list[Example]:
    system = Message("system", "Sort.")
    return [Example((system, Message("user", f"Q{i}")), (x,), (), f"a:{i}") for i, x in enumerate(labels)]


@given(st.lists(st.sampled_from("aaabcd"), max_size=20), st.integers(0, 25), seeds)
@quick
def test_few_shot_examples_have_as_many_different_labels_as_possible(labels: list[str], count: int, seed: int):
    train = solved(labels)
    drawn = draw_few_shot(train, count, seed)
    assert drawn == draw_few_shot(train, count, seed)
    assert len(drawn) == min(count, len(train)) == len({e.source for e in drawn})
    assert len({e.answer for e in drawn}) == min(count, len(set(labels)))


def test_the_few_shot_examples_depend_on_the_seed():
    train = solved("abcd" * 5)
    assert len({tuple(e.source for e in draw_few_shot(train, 4, seed)) for seed in range(5)}) == 5


def test_shots_are_earlier_turns_after_one_system_message():
    first, second, question = solved("abc")
    result = with_shots(question, [first, second])
    assert [(m.role, m.content) for m in result.messages] == [
        ("system", "Sort."),
        ("user", "Q0"),
        ("assistant", "a"),
        ("user", "Q1"),
        ("assistant", "b"),
        ("user", "Q2"),
    ]
    assert (result.answers, result.source) == (question.answers, question.source)


def test_json_numbers_can_be_labels(tmp_path):
    lines = "".join(json.dumps({"text": f"t{i}", "label": i % 2}) + "\n" for i in range(12))
    result = split(DataConfig(train=(file(tmp_path, "a.jsonl", lines),), answer="label"))
    assert result.labels == ("0", "1")


def test_a_run_without_a_prompt_rejects_a_column_with_braces_in_its_name(tmp_path):
    path = tmp_path / "braces.csv"
    path.write_text("{x},label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(20)))
    with pytest.raises(UserError, match="braces in its name"):
        load_split(DataConfig((str(path),), answer="label"), PromptConfig(), 0)
