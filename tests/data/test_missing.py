"""Missing answers, empty prompts, unlabeled files, and labels that look alike."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.data.answers import is_missing
from loratory.data.labels import look_alikes, set_separator, spelling_key
from loratory.data.splits import Split, fold_splits, load_split
from loratory.errors import UserError
from loratory.settings import DataConfig, PromptConfig

TEXTS = DataConfig().missing_texts


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def good(count: int = 30, labels: str = "ab") -> list[dict[str, Any]]:
    return [{"text": f"row {i}", "label": labels[i % len(labels)]} for i in range(count)]


def load(data: DataConfig, task: str = "classification", **prompt: Any) -> Split:
    return load_split(data, PromptConfig(**prompt), 0, task=task)


def sources(split: Split) -> list[str]:
    return sorted(e.source for part in (split.train, split.validation, split.test) for e in part)


# ---- missing answers -------------------------------------------------------------------------------------------------

MISSING = [None, float("nan"), "", " \t", "NaN", " n/a ", "NULL", r"\N"]
PRESENT = ["None", "none", "0", 0, False, "nano", "NA1", ["a", ""]]


@pytest.mark.parametrize("value", [*MISSING, [], ["", None]])
def test_what_means_a_missing_answer(value: Any):
    assert is_missing(value, TEXTS)


@pytest.mark.parametrize("value", PRESENT)
def test_what_does_not_mean_a_missing_answer(value: Any):
    assert not is_missing(value, TEXTS)


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_a_missing_answer_is_never_a_class(tmp_path, value: Any):
    rows = good()
    rows[4:4] = [{"text": "odd", "label": value}]
    rows[9:9] = [{"text": "odder", "label": value}]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="'label' is missing") as caught:
        load(DataConfig(train=(path,), answer="label"))
    assert caught.value.where == f"{path}:5"
    assert "2 of 32 rows" in str(caught.value.found)
    assert 'missing = "skip"' in str(caught.value.fix)
    split = load(DataConfig(train=(path,), answer="label", missing="skip"))
    assert split.labels == ("a", "b")
    assert sources(split) == sorted(f"{path}:{n}" for n in range(1, 33) if n not in (5, 10))
    [finding] = [f for f in split.findings if f.name != "nan_values"]
    assert (finding.name, finding.severity, finding.count) == ("missing_answers", "note", 2)
    assert finding.places == (f"{path}:5", f"{path}:10")


def test_a_text_that_is_a_real_label_can_be_kept(tmp_path):
    rows = [*good(), *({"text": f"north america {i}", "label": "NA"} for i in range(9))]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match="is missing") as caught:
        load(DataConfig(train=(path,), answer="label"))
    assert "if 'NA' is an answer, take it out of [data] missing_texts" in str(caught.value.fix)
    split = load(DataConfig(train=(path,), answer="label", missing_texts=("nan",)))
    assert split.labels == ("NA", "a", "b") and not split.findings


def test_a_record_without_the_key_has_no_answer_but_a_file_without_it_is_a_mistake(tmp_path):
    rows: list[dict[str, Any]] = [*good(), {"text": "unlabeled"}]
    path = lines(tmp_path / "a.jsonl", rows)
    split = load(DataConfig(train=(path,), answer="label", missing="skip"))
    assert [f.count for f in split.findings] == [1]
    for part in ("train", "test"):
        files: dict[str, Any] = {"train": (path,), part: (lines(tmp_path / "b.jsonl", [{"text": "x"}]),)}
        with pytest.raises(UserError, match="answer column 'label' is missing") as caught:
            load(DataConfig(**files, answer="label", missing="skip"))
        assert caught.value.where == f"{tmp_path / 'b.jsonl'}:1"


@pytest.mark.parametrize(
    ("task", "good_value", "bad"),
    [("text", "a long answer", None), ("labels", ["x", "y"], []), ("labels", "x; y", " ; "), ("labels", "x;y", "NA"),
     ("choice", "p", ""), ("choice", 1, None)],
)  # fmt: skip
def test_every_task_with_an_answer_sets_rows_aside(tmp_path, task: str, good_value: Any, bad: Any):
    rows = [{"text": f"row {i}", "options": ["p", "NA"], "label": good_value} for i in range(20)]
    rows[3] |= {"label": bad}
    path = lines(tmp_path / "a.jsonl", rows)
    candidates = "options" if task == "choice" else None
    data = {"train": (path,), "answer": "label", "candidates": candidates}
    with pytest.raises(UserError, match="is missing") as caught:
        load(DataConfig(**data), task)
    assert caught.value.where == f"{path}:4"
    split = load(DataConfig(**data, missing="skip"), task)
    assert f"{path}:4" not in sources(split) and len(sources(split)) == 19


def test_a_candidate_may_be_any_text(tmp_path):
    rows = [{"text": f"row {i}", "options": ["p", "NA"], "label": "NA"} for i in range(20)]
    split = load(DataConfig(train=(lines(tmp_path / "a.jsonl", rows),), answer="label", candidates="options"), "choice")
    assert split.train[0].answer == "NA"


def test_missing_items_of_a_set_of_labels_are_left_out(tmp_path):
    rows = [{"text": f"row {i}", "label": ["x", "y" if i % 2 else "z", None, float("nan"), "NA"]} for i in range(20)]
    split = load(DataConfig(train=(lines(tmp_path / "a.jsonl", rows),), answer="label"), "labels")
    assert split.labels == ("x", "y", "z")


def test_folds_and_given_sets_are_treated_alike(tmp_path):
    rows = [*good(), {"text": "odd", "label": None}]
    path, other = lines(tmp_path / "a.jsonl", rows), lines(tmp_path / "b.jsonl", rows)
    data = DataConfig(train=(path,), answer="label", missing="skip", folds=3)
    split = load(data)
    tested = [e.source for fold in fold_splits(split, data, 0) for e in fold.test]
    assert sorted(tested) == sorted(f"{path}:{n}" for n in range(1, 31))
    for part in ("validation", "test"):
        given: dict[str, Any] = {part: (other,)}
        split = load(DataConfig(train=(path,), answer="label", missing="skip", **given))
        assert len(getattr(split, part)) == 30
        assert [f.count for f in split.findings] == [2]


def test_no_rows_are_left(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"text": "x", "label": None}] * 3)
    with pytest.raises(UserError, match="No rows are left") as caught:
        load(DataConfig(train=(path,), answer="label", missing="skip"))
    assert caught.value.where == f"{path}:1"


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("labels", [[-1, -1], ["-1", None], [None, ""]])
@pytest.mark.parametrize("missing", ["error", "skip"])
def test_a_given_file_without_labels_is_named(tmp_path, part: str, labels: list[Any], missing: Any):
    path = lines(tmp_path / "a.jsonl", good())
    other = lines(tmp_path / "b.jsonl", [{"text": f"test {i}", "label": labels[i % 2]} for i in range(10)])
    given: dict[str, Any] = {"train": (path,), part: (other,)}
    with pytest.raises(UserError, match=f"A {part} file has no answers") as caught:
        load(DataConfig(**given, answer="label", missing=missing))
    assert caught.value.where == f"{other}:1"
    assert f"[data] {part}" in str(caught.value.fix)


def test_minus_one_may_be_a_label(tmp_path):
    rows = [{"text": f"row {i}", "label": i % 3 - 1} for i in range(30)]
    test = lines(tmp_path / "b.jsonl", [{"text": f"test {i}", "label": -1} for i in range(10)])
    split = load(DataConfig(train=(lines(tmp_path / "a.jsonl", rows),), test=(test,), answer="label"))
    assert split.labels == ("-1", "0", "1") and {e.answer for e in split.test} == {"-1"}


# ---- empty prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " \n", None, float("nan")])
def test_a_row_without_text_in_the_prompt(tmp_path, value: Any):
    rows = [{"title": f"title {i}", **row, "id": i} for i, row in enumerate(good())]
    rows[6] |= {"title": value, "text": value}
    rows[7] |= {"title": value}  # the text is enough
    path = lines(tmp_path / "a.jsonl", rows)
    user = "{title}: {text}"
    with pytest.raises(UserError, match="prompt of a row is empty") as caught:
        load(DataConfig(train=(path,), answer="label"), user=user)
    assert caught.value.where == f"{path}:7"
    split = load(DataConfig(train=(path,), answer="label", missing="skip"), user=user)
    found = [(f.name, f.count, f.places) for f in split.findings if f.name != "nan_values"]
    assert found == [("empty_prompts", 1, (f"{path}:7",))]
    assert f"{path}:7" not in sources(split) and f"{path}:8" in sources(split)
    load(DataConfig(train=(path,), answer="label"), user=f"{user} {{id}}")


def test_a_prompt_may_say_that_something_is_missing(tmp_path):
    rows = [{"text": text, "label": label} for text, label in (("N/A", "none"), ("nan", "none"), ("fine", "good"))] * 9
    split = load(DataConfig(train=(lines(tmp_path / "a.jsonl", rows),), answer="label"), user="{text}")
    assert not split.findings


# ---- labels that look alike ------------------------------------------------------------------------------------------

ALIKE = [
    ("Spam", "spam"), ("spam", " spam\u200b"), ("Not  spam", "not spam"), ("not\u00a0spam", "not spam"),
    ("ﬁne", "fine"), ("café", "cafe\u0301"), ("don’t", "don't"), ("e–mail", "e-mail"), ("Yes.", "yes"),
    ("“a”", '"a"'), ("\ufeffspam", "spam"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), ALIKE)
def test_labels_that_look_alike(a: str, b: str):
    assert spelling_key(a) == spelling_key(b)


@pytest.mark.parametrize(("a", "b"), [("C", "C++"), ("C#", "C"), ("+", "-"), ("a b", "ab"), ("1", "10"), ("!", "?")])
def test_labels_that_do_not_look_alike(a: str, b: str):
    assert spelling_key(a) != spelling_key(b)


@given(st.text(max_size=12))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_every_label_has_a_key(label: str):
    assert spelling_key(label) or not label


def test_groups_are_listed_with_the_most_frequent_spelling_first():
    counts = {"Spam": 3, "spam": 5, "SPAM": 3, "ham": 9}
    assert look_alikes(counts) == [["spam", "SPAM", "Spam"]]


def spelled(tmp_path: Path) -> str:
    labels = ["spam"] * 12 + ["Spam", "ham", "spam."] * 4 + ["ham"] * 8
    return lines(tmp_path / "a.jsonl", [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)])


def test_look_alike_labels_are_one_finding_with_groups_and_counts(tmp_path):
    split = load(DataConfig(train=(spelled(tmp_path),), answer="label"))
    [finding] = split.findings
    assert (finding.name, finding.severity, finding.count) == ("look_alike_labels", "warning", 3)
    assert "'spam' (12), 'Spam' (4), 'spam.' (4)" in finding.message
    assert finding.places[0].endswith(":13")
    assert split.labels == ("Spam", "ham", "spam", "spam.")


def test_normalized_labels_have_the_most_frequent_spelling(tmp_path):
    split = load(DataConfig(train=(spelled(tmp_path),), answer="label", normalize_labels=True))
    assert split.labels == ("ham", "spam")
    [finding] = split.findings
    assert (finding.name, finding.severity, finding.count) == ("normalized_labels", "note", 8)
    assert "'Spam' → 'spam' (4)" in finding.message


def test_sets_of_labels_are_normalized_and_sorted(tmp_path):
    rows = [{"text": f"row {i}", "label": ["b", "A", "a"] if i == 3 else ["a", "b"]} for i in range(20)]
    path = lines(tmp_path / "a.jsonl", rows)
    split = load(DataConfig(train=(path,), answer="label", normalize_labels=True), "labels")
    assert split.labels == ("a", "b")
    assert {e.answers for e in (*split.train, *split.validation, *split.test)} == {("a", "b")}


def test_an_unknown_label_of_the_test_set_that_looks_like_a_known_one(tmp_path):
    path = lines(tmp_path / "a.jsonl", good(labels=("yes", "no")))  # type: ignore[arg-type]
    test = lines(tmp_path / "b.jsonl", [{"text": f"t {i}", "label": "Yes "} for i in range(4)])
    data = {"train": (path,), "test": (test,), "answer": "label"}
    with pytest.raises(UserError, match="does not occur in the training data") as caught:
        load(DataConfig(**data))
    assert caught.value.fix == "correct it to 'yes', or set [data] normalize_labels = true (or --data.normalize-labels)"
    split = load(DataConfig(**data, normalize_labels=True))
    assert {e.answer for e in split.test} == {"yes"}


def test_a_label_that_looks_like_a_missing_value_is_a_warning(tmp_path):
    rows = [*good(), *({"text": f"odd {i}", "label": "None"} for i in range(6))]
    split = load(DataConfig(train=(lines(tmp_path / "a.jsonl", rows),), answer="label"))
    [finding] = split.findings
    assert (finding.name, finding.severity, finding.count) == ("label_looks_missing", "warning", 6)
    assert "None" in split.labels


SETS = ["a", "b", "c", "a{0}b", "b{0}c", "a{0}b{0}c"]


@pytest.mark.parametrize("separator", ["; ", ";", "|", " | ", ", "])
def test_sets_of_labels_are_told_by_parts_that_recur(separator: str):
    assert set_separator(text.format(separator) for text in SETS) == separator.strip()


@pytest.mark.parametrize(
    "answers",
    [
        ["spam", "ham"],
        ["Paris, France", "Lyon, France", "Rome, Italy"],
        ["Yes, it is.", "No, it is not.", "Yes, but it is not."],
        ["12,5", "13,1", "12,1"],
        ["a", "b", "c", "d", "e", "f", "g", "h", "a, b"],
        ["New York, New York", "New York"],
    ],
)
def test_other_answers_with_a_separator_are_no_sets(answers: list[str]):
    assert set_separator(answers) == ""
