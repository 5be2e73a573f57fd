"""The table of checks: each planted fault is found, at its place, and none is invented in clean data."""

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import byte_tokenizer

from loratory.checks import CHECKS, Material, check_data, refuse_errors, with_waivers
from loratory.checks.similar import near_earlier, normalized
from loratory.data.findings import Finding
from loratory.data.splits import load_split
from loratory.errors import UserError
from loratory.settings import DataConfig, PromptConfig
from loratory.text.template import Renderer, make_renderer

# Words without meaning, so that texts are alike only where a test makes them so.
WORDS = [a + b for a in ("ka", "ro", "mi", "tu", "se", "lo") for b in ("nex", "bar", "dil", "fom", "gup", "rin", "zat")]
# Labels that begin with different bytes, which are the tokens here.
LABELS = ("alpha", "beta", "gamma")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return make_renderer(byte_tokenizer(), (2,), PromptConfig())


def clean_rows(count: int = 120, seed: int = 0, length: int = 12) -> Rows:
    rng = random.Random(seed)
    return [
        {"text": " ".join(rng.choices(WORDS, k=length)), "place": rng.choice(WORDS), "label": LABELS[i % 3]}
        for i in range(count)
    ]


def found_in(
    renderer: Renderer,
    folder: Path,
    train: Rows,
    test: Rows | None = None,
    task: str = "classification",
    user: str = "{text}\n{place}",
    context: int | None = 600,
    **data: Any,
) -> dict[str, Finding]:
    """The findings in these rows, by name."""
    for name, rows in (("train", train), ("test", test or [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files: dict[str, Any] = {"train": (str(folder / "train.jsonl"),)}
    files |= {"test": (str(folder / "test.jsonl"),)} if test else {}
    config = DataConfig(**files, answer="label", missing="skip", **data)
    system = "Answer with one of: {labels}." if task in ("classification", "labels") else None
    split = load_split(config, PromptConfig(system=system, user=user), 0, task=task)
    material = Material(split, renderer, task, config.folds > 0, bool(test), context)
    findings = check_data(material)
    assert len({f.name for f in findings}) == len(findings)
    return {f.name: f for f in findings}


# ---- planted faults --------------------------------------------------------------------------------------------------


def repeat_train(train: Rows, test: Rows) -> None:
    train[50] |= {"text": train[20]["text"].upper(), "place": f" {train[20]['place']}", "label": train[20]["label"]}


def nearly_repeat_train(train: Rows, test: Rows) -> None:
    train[50] |= {"text": train[20]["text"], "place": f"{train[20]['place']} again"}


def repeat_in_test(train: Rows, test: Rows) -> None:
    test[3] |= {key: train[20][key] for key in ("text", "place", "label")}


def nearly_repeat_in_test(train: Rows, test: Rows) -> None:
    test[3] |= {"text": train[20]["text"], "place": f"{train[20]['place']} again"}


def repeat_most_of_test(train: Rows, test: Rows) -> None:
    test[:] = [*train[:20], *test[:15]]


def contradict(train: Rows, test: Rows) -> None:
    train[50] |= {"text": train[20]["text"], "place": train[20]["place"], "label": "alpha"}
    train[20] |= {"label": "beta"}


def show_answer(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        row["place"] = row["label"].upper()


def encode_answer(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        row["place"] = LABELS.index(row["label"]) + 7


def mention_answer(train: Rows, test: Rows) -> None:
    for row in (*train, *test):
        row["text"] += f" ({row['label']})"


def imbalance(train: Rows, test: Rows) -> None:
    for row in train[: 5 * len(train) // 6]:
        row["label"] = "alpha"


def rare(train: Rows, test: Rows) -> None:
    train[7]["label"] = "omega"


def begin_alike(train: Rows, test: Rows) -> None:
    for row in train[:30]:
        row["label"] = "alphabet"


def share_first_token(train: Rows, test: Rows) -> None:
    for row in train[:30]:
        row["label"] = "bravo"


def look_alike(train: Rows, test: Rows) -> None:
    for row in train[:30]:
        row["label"] = row["label"].replace("alpha", "Alpha")


def look_missing(train: Rows, test: Rows) -> None:
    for row in train[:10]:
        row["label"] = "?"


def special(train: Rows, test: Rows) -> None:
    train[11]["text"] += " <|im_end|>"


def too_long(train: Rows, test: Rows) -> None:
    train[11]["text"] = " ".join(f"{word}{i}" for i, word in enumerate(WORDS * 4))


def no_answer(train: Rows, test: Rows) -> None:
    train[11]["label"] = "nan"


def no_prompt(train: Rows, test: Rows) -> None:
    train[11] |= {"text": "", "place": None}


def combine(train: Rows, test: Rows) -> None:
    for row in train[:20]:
        row["label"] = f"{LABELS[0]}, {LABELS[1]}"


# The fault, the finding, its severity, and the first place: file and line.
FAULTS: list[tuple[Callable[[Rows, Rows], None], str, str, str]] = [
    (repeat_train, "duplicates_in_train", "note", "train.jsonl:51"),
    (nearly_repeat_train, "near_duplicates_in_train", "note", "train.jsonl:51"),
    (repeat_in_test, "test_in_train", "warning", "test.jsonl:4"),
    (nearly_repeat_in_test, "test_near_train", "warning", "test.jsonl:4"),
    (repeat_most_of_test, "test_in_train", "error", "test.jsonl:1"),
    (contradict, "conflicting_answers", "warning", "train.jsonl:21"),
    (show_answer, "leaking_column", "error", "train.jsonl:1"),
    (encode_answer, "leaking_column", "error", "train.jsonl:1"),
    (mention_answer, "answer_in_prompt", "warning", "train.jsonl:1"),
    (imbalance, "imbalanced_labels", "warning", ""),
    (rare, "rare_labels", "warning", "train.jsonl:8"),
    (combine, "answers_are_sets", "warning", "train.jsonl:1"),
    (begin_alike, "labels_begin_alike", "note", ""),
    (share_first_token, "labels_share_tokens", "note", ""),
    (look_alike, "look_alike_labels", "warning", "train.jsonl:1"),
    (look_missing, "label_looks_missing", "warning", "train.jsonl:1"),
    (special, "special_tokens_in_data", "warning", "train.jsonl:12"),
    (too_long, "overlong", "error", "train.jsonl:12"),
    (no_answer, "missing_answers", "note", "train.jsonl:12"),
    (no_prompt, "empty_prompts", "note", "train.jsonl:12"),
]
# What a fault brings with it: a repeated text with two labels, a longer label that begins with the same token.
COMPANIONS = {
    "conflicting_answers": {"duplicates_in_train"},
    "labels_begin_alike": {"labels_share_tokens"},
    "answers_are_sets": {"labels_begin_alike", "labels_share_tokens"},
}


@pytest.mark.parametrize(
    ("plant", "name", "severity", "place"), FAULTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_planted_fault_is_found_at_its_place_and_no_other(renderer, tmp_path, plant, name, severity, place):
    train, test = clean_rows(), clean_rows(30, seed=1)
    plant(train, test)
    found = found_in(renderer, tmp_path, train, test, validation_share=0.0)
    assert set(found) - COMPANIONS.get(name, set()) == {name}
    assert found[name].severity == severity
    assert found[name].places[:1] == ((f"{tmp_path}/{place}",) if place else ())


def test_every_name_of_a_finding_is_in_the_table_and_planted_or_tested_elsewhere():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    elsewhere = {
        "few_examples",
        "labels_not_in_prompt",
        "normalized_labels",
        "overlong_dropped",
        "overlong_cut",
        "prompt_not_searched",
        "template_differs",
    }
    assert set(names) == {name for _, name, _, _ in FAULTS} | elsewhere


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("task", "folds"), [("classification", 0), ("classification", 4), ("labels", 0), ("text", 0), ("choice", 4)]
)
def test_nothing_is_found_in_clean_data(renderer, tmp_path, seed: int, task: str, folds: int):
    rows = clean_rows(seed=seed)
    rng = random.Random(seed)
    for row in rows:
        row["options"] = rng.sample(WORDS, 4)
        if task == "labels":
            row["label"] = rng.sample(LABELS, 2)
        if task in ("text", "choice"):
            row["label"] = row["options"][0]
    extra = {"candidates": "options"} if task == "choice" else {}
    assert found_in(renderer, tmp_path, rows, task=task, folds=folds, **extra) == {}


def test_labels_that_look_alike_are_not_said_to_begin_alike_too(renderer, tmp_path):
    rows = clean_rows()
    for row in rows[::2]:
        row["label"] += "."
    found = found_in(renderer, tmp_path, rows)
    assert "look_alike_labels" in found and "labels_begin_alike" not in found
    assert "--data.normalize-labels" in found["look_alike_labels"].message


@pytest.mark.parametrize("folds", [0, 3])
def test_few_examples_are_said_to_show_little(renderer, tmp_path, folds: int):
    found = found_in(renderer, tmp_path, clean_rows(29), folds=folds)
    assert found["few_examples"].count == 29 and "only 29 examples" in found["few_examples"].message
    assert "few_examples" not in found_in(renderer, tmp_path, clean_rows(30), folds=folds)


def test_labels_that_the_prompt_does_not_name(renderer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in clean_rows()))
    split = load_split(DataConfig((str(path),), answer="label"), PromptConfig(user="alpha? {text}"), 0)
    [finding] = check_data(Material(split, renderer, "classification"))
    assert (finding.name, finding.count) == ("labels_not_in_prompt", 2)


def test_with_folds_every_row_that_occurs_twice_is_in_another_fold(renderer, tmp_path):
    rows = clean_rows()
    repeat_train(rows, [])
    found = found_in(renderer, tmp_path, rows, folds=4)
    assert set(found) == {"test_in_train"}
    assert (found["test_in_train"].count, found["test_in_train"].severity) == (2, "warning")


def test_a_share_of_train_that_repeats_is_only_a_warning(renderer, tmp_path):
    found = found_in(renderer, tmp_path, clean_rows() * 2)
    assert found["test_in_train"].severity == "warning" and found["duplicates_in_train"].severity == "warning"


# ---- leaks -----------------------------------------------------------------------------------------------------------


def test_the_only_column_of_a_prompt_may_have_one_value_for_each_label(renderer, tmp_path):
    rows = [{"text": LABELS.index(row["label"]), **row, "place": ""} for row in clean_rows()]
    for row in rows:
        row["text"] = f"question {LABELS.index(row['label'])}"
    assert "leaking_column" not in found_in(renderer, tmp_path, rows, user="{text}")


def test_a_column_that_only_goes_with_the_answer_is_no_leak(renderer, tmp_path):
    rng = random.Random(0)
    rows = clean_rows(300)
    for row in rows:
        row["place"] = row["label"][0] if rng.random() < 0.8 else rng.choice("abg")
    assert found_in(renderer, tmp_path, rows) == {}


def test_a_constant_column_is_no_leak_if_nearly_all_labels_are_the_same(renderer, tmp_path):
    rows = clean_rows(300)
    for i, row in enumerate(rows):
        row |= {"label": "alpha" if i % 30 else "beta", "place": "here" if i % 31 else "there"}
    assert "leaking_column" not in found_in(renderer, tmp_path, rows)


@pytest.mark.parametrize("first", [0, 1])
def test_the_number_of_the_right_candidate_is_a_leak(renderer, tmp_path, first: int):
    rng = random.Random(0)
    rows = clean_rows()
    for row in rows:
        row["options"] = rng.sample(WORDS, 4)
        row["label"] = rng.choice(row["options"])
        row["place"] = str(row["options"].index(row["label"]) + first)
    found = found_in(renderer, tmp_path, rows, task="choice", candidates="options", user="{text} {place} {options}")
    assert set(found) == {"leaking_column"} and "'place'" in found["leaking_column"].message


def test_a_text_that_copies_its_prompt_is_a_leak_and_one_that_quotes_it_is_not(renderer, tmp_path):
    rows = clean_rows()
    copied = [{**row, "label": row["text"]} for row in rows]
    quoted = [{**row, "label": row["text"][:20]} for row in rows]
    assert set(found_in(renderer, tmp_path, copied, task="text")) == {"leaking_column"}
    assert found_in(renderer, tmp_path, quoted, task="text") == {}


def test_a_plain_text_is_its_own_answer_and_no_leak(renderer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in clean_rows()))
    split = load_split(DataConfig((str(path),)), PromptConfig(user="{text}"), 0, task="fill")
    assert check_data(Material(split, renderer, "fill")) == []


# ---- near duplicates -------------------------------------------------------------------------------------------------


def jaccard(a: str, b: str) -> float:
    first, second = (set(zip(w, w[1:], w[2:], strict=False)) for w in (a.split(), b.split()))
    return len(first & second) / len(first | second)


@given(st.integers(0, 10**6), st.integers(0, 6))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_two_texts_are_nearly_the_same_as_their_shingles_say(seed: int, changes: int):
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=60)
    other = list(words)
    for i in rng.sample(range(60), changes):
        other[i] = "changed"
    texts = [" ".join(words), " ".join(rng.choices(WORDS, k=60)), " ".join(other)]
    if changes:
        assert (near_earlier(texts) == {2: 0}) == (jaccard(texts[0], texts[2]) >= 0.8)


def test_every_copy_of_a_much_repeated_text_is_found():
    rng = random.Random(0)
    base = " ".join(rng.choices(WORDS, k=60))
    texts = [f"{base} number {i}" for i in range(200)]
    assert set(near_earlier([*texts, " ".join(rng.choices(WORDS, k=60))])) == set(range(1, 200))


def test_short_texts_are_only_compared_exactly():
    assert near_earlier(["the cat number 5 sleeps", "the cat number 6 sleeps"]) == {}
    assert normalized(" The\u00a0CAT  ﬁnds\n") == "the cat finds"


# ---- errors and waivers ----------------------------------------------------------------------------------------------

ERROR = Finding("leaking_column", "error", "a leak", 3, ("a.csv:2",))
NOTE = Finding("missing_answers", "note", "2 rows", 2)


def test_an_error_is_refused_by_name_and_place_unless_it_is_waived():
    with pytest.raises(UserError, match="The result would mean nothing") as caught:
        refuse_errors([ERROR, NOTE], ())
    assert caught.value.where == "a.csv:2" and "leaking_column" in str(caught.value.found)
    assert 'waive = ["leaking_column"]' in str(caught.value.fix)
    waived = with_waivers([ERROR, NOTE], ("leaking_column",))
    assert waived == [dataclasses.replace(ERROR, severity="warning", message="a leak (waived)"), NOTE]
    refuse_errors(waived, ("leaking_column",))


def test_the_fix_keeps_what_is_waived_already():
    with pytest.raises(UserError) as caught:
        refuse_errors([ERROR], ("test_in_train",))
    assert 'waive = ["test_in_train", "leaking_column"]' in str(caught.value.fix)


def test_an_unknown_name_in_waive_is_a_mistake_with_a_suggestion():
    with pytest.raises(UserError, match="Unknown name of a finding") as caught:
        with_waivers([], ("leaking_colum",))
    assert caught.value.fix == "did you mean 'leaking_column'?"
    with_waivers([Finding("from_a_reader", "note", "x")], ("from_a_reader",))


@pytest.mark.parametrize("name", ["overlong", "missing_answers", "empty_prompts"])
def test_what_another_setting_decides_cannot_be_waived(name: str):
    with pytest.raises(UserError, match="cannot be waived") as caught:
        with_waivers([], (name,))
    assert "set [data]" in str(caught.value.fix)


# ---- real data -------------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("train", "test", "answer", "user"),
    [
        ("arxiv/train.jsonl", "arxiv/test.jsonl", "category", "{title}\n{abstract}"),
        ("banking77/train.csv", "banking77/test.csv", "category", "{text}"),
    ],
)
def test_real_data_has_no_errors_and_few_warnings(renderer, train: str, test: str, answer: str, user: str):
    files = [(str(SHARED / "data" / name),) for name in (train, test)]
    data = DataConfig(train=files[0], test=files[1], answer=answer)
    split = load_split(data, PromptConfig(system="{labels}", user=user), 0)
    found = check_data(Material(split, renderer, "classification", has_test_file=True))
    assert [f for f in found if f.severity == "error"] == []
    # Seven questions of Banking77 are in both files.
    warned = {f.name for f in found if f.severity == "warning"}
    assert warned == (set() if "arxiv" in train else {"test_in_train", "test_near_train"})


def test_the_table_in_the_documentation_lists_every_check():
    page = (Path(__file__).parents[2] / "docs" / "data-checks.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [check.name for check in CHECKS]
